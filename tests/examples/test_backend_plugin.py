"""The example plugin: installed by pip, used by name, and held to the same promises as our own backends."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.examples.conftest import EXAMPLES, run_program
from unified_tracker import RunInfo, Tracker
from unified_tracker.testing import Stored, StoredVersion, TrackerConformance, run_info

TRAINING = """
import sys
from pathlib import Path
import unified_tracker as ut

Path("checkpoint.pth").write_bytes(b"weights")
config = {"lr": {"base": 0.02}}
with ut.start_run("jsonlines", project="balloon", name="#1", tags={"stage": "dev"}, config=config) as run:
    for step in range(1, 101):
        run.log_metrics({"train/loss": 1 / step, "bad": float("nan")}, step=step)
    run.log_checkpoint("checkpoint.pth", step=100, epoch=1, metrics={"bbox/AP": 41.5}, aliases=["best"])
    run.log_text("note", "hello", step=3)
print(run.id)
assert not {"unified_tracker_jsonlines.tracker", "mlflow", "wandb"} & set(sys.modules), "heavy parts in the training"
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the example."""
    target = tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("source") / "backend_plugin"
    subprocess.run(["cp", "-r", str(EXAMPLES / "backend_plugin"), str(copy)], check=True)  # pip leaves build/ behind
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
    ]
    subprocess.run([*pip, str(copy)], check=True, timeout=200)
    return target


@pytest.fixture
def reading(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin's own reader."""
    monkeypatch.syspath_prepend(str(installed))
    return importlib.import_module("unified_tracker_jsonlines")


def test_a_training_arrives_in_a_backend_that_we_do_not_know(installed: Path, reading: Any, tmp_path: Path) -> None:
    done = run_program("-c", TRAINING, cwd=tmp_path, path=installed)
    assert done.code == 0, done.err
    run_id = done.out.split()[-1]
    run = reading.read_run(tmp_path / "jsonlines" / run_id)
    assert run.about["project"] == "balloon"
    assert run.status == "FINISHED"
    assert run.params["lr.base"] == 0.02
    assert run.tags["stage"] == "dev"
    assert run.metrics["train/loss"] == [(step, 1 / step) for step in range(1, 101)]
    assert [str(value) for _, value in run.metrics["bad"]] == ["nan"] * 100
    (version,) = run.versions[f"run-{run_id}-model"]
    assert version["aliases"] == ["best", "latest"]
    assert version["metrics"] == {"bbox/AP": 41.5}
    assert (
        tmp_path / "jsonlines" / run_id / "artifacts" / f"run-{run_id}-model" / "v0" / "checkpoint.pth"
    ).read_bytes() == (b"weights")
    assert [(tmp_path / "jsonlines" / run_id / file).read_text() for _, file in run.media["note"]] == ["hello"]


def test_the_switch_reaches_the_plugin_too(installed: Path, reading: Any, tmp_path: Path) -> None:
    (tmp_path / "tracker.yaml").write_text("tracker: jsonlines\noptions: {jsonlines: {path: elsewhere}}\n")
    done = run_program(
        "-c", "import unified_tracker as ut\nwith ut.start_run() as run: print(run.id)", cwd=tmp_path, path=installed
    )
    assert done.code == 0, done.err
    assert reading.read_run(tmp_path / "elsewhere" / done.out.split()[-1]).status == "FINISHED"


def test_a_misspelt_option_of_the_plugin_is_an_error_before_training(installed: Path, tmp_path: Path) -> None:
    code = "import unified_tracker as ut\nut.start_run('jsonlines', options={'jsonlines': {'pth': 'x'}})"
    done = run_program("-c", code, cwd=tmp_path, path=installed)
    assert "options of 'jsonlines': unknown option 'pth'; known: path" in done.err
    assert not (tmp_path / "unified-tracker").exists()


def test_the_command_line_lists_the_plugin_with_its_distribution(installed: Path, tmp_path: Path) -> None:
    done = run_program("-m", "unified_tracker.cli", "backends", "--json", cwd=tmp_path, path=installed)
    listed = {entry["name"]: entry for entry in json.loads(done.out)}
    assert (listed["jsonlines"]["distribution"], listed["jsonlines"]["version"]) == (
        "unified-tracker-jsonlines",
        "0.1.0",
    )
    assert listed["jsonlines"]["usable"]


class JsonLinesSubject:
    """One run in a folder, for the conformance suite."""

    def __init__(self, folder: Path, reading: Any) -> None:
        self._folder, self._reading = folder, reading
        self._info: RunInfo = run_info("jsonlines")

    def tracker(self) -> Tracker:
        from unified_tracker_jsonlines import plugin

        backend = plugin.tracker_backend()
        tracker: Tracker = backend.create(self._info, self._folder, backend.check({"path": self._folder}))
        return tracker

    def stored(self) -> Stored:
        run = self._reading.read_run(self._folder / self._info.id)
        versions = {
            name: [StoredVersion(v["files"], frozenset(v["aliases"]), v["metrics"]) for v in versions]
            for name, versions in run.versions.items()
        }
        metrics = {name: sorted(rows, key=lambda row: row[0]) for name, rows in run.metrics.items()}
        params = {name: str(value) for name, value in run.params.items()}
        return Stored(metrics, params, run.tags, versions, frozenset(run.files), run.status)


class TestJsonLines(TrackerConformance):
    """Every promise of `Tracker`, on the example."""

    @pytest.fixture
    def subject(self, tmp_path: Path, reading: Any) -> Iterator[JsonLinesSubject]:
        return JsonLinesSubject(tmp_path, reading)  # type: ignore[return-value]  # a fixture of the suite
