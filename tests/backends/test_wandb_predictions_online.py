"""Predictions in W&B online: the real client against the loopback double, and `wandb sync` of an offline run."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

wandb = pytest.importorskip("wandb")

import unified_tracker as ut
from tests.backends.wandb_feeding import KEY, TS, Feeder, clean_environment, info
from tests.backends.wandb_files import offline_folders
from tests.backends.wandb_reports import found, reported, rows_of, scene
from tests.backends.wandb_server import Version, WandbServer
from unified_tracker import TransientError
from unified_tracker.backends import _wandb_versions
from unified_tracker.backends._wandb_tracker import WandbTracker
from unified_tracker.predictions import SampleEvaluation
from unified_tracker.predictions._report import PredictionReport
from unified_tracker.records import Entry

# A run that a test leaves open, as a crash does, leaves threads of W&B's client behind, which complain at its end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
PREDICTIONS = "run-run0abcd-predictions"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    double = WandbServer(KEY)
    yield double
    double.heal()
    wandb.teardown(exit_code=1)
    double.close()


@pytest.fixture
def run_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: WandbServer) -> Path:
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
    for what in ("FILE_STREAM", "GRAPHQL", "FILE_TRANSFER"):
        monkeypatch.setenv(f"WANDB__{what}_RETRY_WAIT_MIN_SECONDS", "1")
        monkeypatch.setenv(f"WANDB__{what}_RETRY_WAIT_MAX_SECONDS", "1")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def opened(tmp_path: Path, run_dir: Path, mode: str = "online", **options: Any) -> WandbTracker:
    tracker = WandbTracker(info(tmp_path), run_dir, {"mode": mode, **options})
    tracker.open(info(tmp_path))
    return tracker


def evaluations(tmp_path: Path) -> list[SampleEvaluation]:
    """Two of the same sample."""
    first = SampleEvaluation(scene(tmp_path), {number: found(number) for number in range(3)})
    return [first, replace(first, predictions={0: found(7)})]


def uploaded(server: WandbServer) -> int:
    """How many pictures have been sent."""
    return sum(
        count for label, count in server.requests.items() if label.startswith("put/artifact") and ".jpg" in label
    )


def contents(version: Version) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(version.manifest)["contents"]
    return found


def whole(server: WandbServer) -> None:
    """Everything is there once, references lead to what they name, and the workspace shows it."""
    assert server.problems == []
    assert [version.name for version in server.versions if version.state != "COMMITTED"] == []
    for version in server.versions:
        for path, entry in contents(version).items():
            if "ref" in entry:
                content = server.referred(entry["ref"]).files[entry["ref"].partition("://")[2].partition("/")[2]]
                assert base64.b64encode(hashlib.md5(content).digest()).decode() == entry["digest"], path
    (sample,) = server.committed("shapes-val")
    first, second = server.committed(PREDICTIONS)
    assert len([path for path in sample.files if path.endswith(".jpg")]) == 3
    assert first.aliases == {"iter_100"} and second.aliases == {"best", "latest", "iter_200"}
    for version in (first, second):
        named = contents(version)
        (row, *_) = rows_of(json.loads(version.files["eval_data.table.json"]))
        for cell in (row["ground_truth"], row["prediction"]):
            assert {cell["path"], cell["classes"]["path"], *(mask["path"] for mask in cell["masks"].values())} <= set(
                named
            )
        if "ref" in named["images/0.jpg"]:
            assert server.referred(named["images/0.jpg"]["ref"]) is sample
    run = server.runs["run0abcd"]
    shown = [row["val/predictions"] for row in run.rows if "val/predictions" in row]
    assert [value["nrows"] for value in shown] == [3, 1]
    assert all(value["path"] in run.files for value in shown)
    assert [row["trainer/step"] for row in run.rows] == [100, 200]


def test_pictures_are_sent_once_and_versions_are_committed(server: WandbServer, tmp_path: Path, run_dir: Path) -> None:
    tracker, feed = opened(tmp_path, run_dir), Feeder(run_dir)
    for step, given in zip((100, 200), evaluations(tmp_path), strict=True):
        tracker.log_predictions(*reported(run_dir, feed, given, step))
        assert server.committed(PREDICTIONS)[-1].metadata["step"] == step, "it counts before it is committed"
    tracker.close("FINISHED", TS)
    whole(server)
    assert uploaded(server) == 3
    assert all("ref" in contents(version)["images/0.jpg"] for version in server.committed(PREDICTIONS))
    left = {path.name for path in (run_dir / "wandb" / "media").iterdir()}
    assert len(left) == 1, "files that the server has lie around"
    for value in (row["val/predictions"]["artifact_path"] for row in server.runs["run0abcd"].rows):
        assert server.referred(value) in server.committed(PREDICTIONS)


def test_a_replay_in_a_new_process_sends_nothing_twice(server: WandbServer, tmp_path: Path, run_dir: Path) -> None:
    feed, steps = Feeder(run_dir), zip((100, 200), evaluations(tmp_path), strict=True)
    first, second = [reported(run_dir, feed, given, step) for step, given in steps]
    tracker = opened(tmp_path, run_dir)
    tracker.log_predictions(*first)
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    for _ in range(2):  # as after two crashes
        tracker = opened(tmp_path, run_dir)
        for report in (first, second):
            tracker.log_predictions(*report)
    tracker.close("FINISHED", TS)
    whole(server)
    assert uploaded(server) == 3


def test_another_run_with_the_same_sample_makes_no_second_version(
    server: WandbServer, tmp_path: Path, run_dir: Path
) -> None:
    for run_id in ("run0abcd", "run1abcd"):
        folder = tmp_path / run_id
        folder.mkdir()
        run = msgspec.structs.replace(info(tmp_path), id=run_id)
        tracker = WandbTracker(run, folder, {"mode": "online"})
        tracker.open(run)
        tracker.log_predictions(*reported(folder, Feeder(folder), evaluations(tmp_path)[0], run=run))
        tracker.close("FINISHED", TS)
    assert len(server.committed("shapes-val")) == 1 and server.problems == []
    assert uploaded(server) == 3


@pytest.mark.parametrize("what", ["CreateArtifact$", "CreateArtifactFiles", "CommitArtifact", "put/artifact"])
def test_what_the_server_does_not_take_at_first_arrives_once(
    server: WandbServer, tmp_path: Path, run_dir: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wandb_versions, "WAIT_S", 2.0)
    tracker, feed = opened(tmp_path, run_dir), Feeder(run_dir)
    for step, given in zip((100, 200), evaluations(tmp_path), strict=True):
        report = reported(run_dir, feed, given, step)
        server.fault(what, 503)
        with pytest.raises(TransientError, match="artifact"):
            tracker.log_predictions(*report)
        assert len(server.committed(PREDICTIONS)) == step // 100 - 1
        server.heal()
        insist(tracker, *report)
    tracker.close("FINISHED", TS)
    whole(server)


def insist(tracker: WandbTracker, entry: Entry, report: PredictionReport) -> None:
    """Call as the lane does."""
    ends = time.monotonic() + 60
    while True:
        try:
            tracker.log_predictions(entry, report)
        except TransientError:  # noqa: PERF203 -- few tries
            assert time.monotonic() < ends
        else:
            return


def test_an_upload_may_take_longer_than_one_call_waits(
    server: WandbServer, tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of gigabytes: W&B's client forgets an upload for which somebody has waited in vain once."""
    monkeypatch.setattr(_wandb_versions, "WAIT_S", 1.0)
    tracker = opened(tmp_path, run_dir)
    model = Feeder(run_dir).artifact("run-run0abcd-model", {"model.pth": b"weights"})
    slow = server.fault("put/artifact", None, times=1)
    for _ in range(3):
        with pytest.raises(TransientError, match="still taking"):
            tracker.log_artifact(*model)
    assert slow.hits == 1
    server.heal()
    ends = time.monotonic() + 60
    while not server.committed("run-run0abcd-model"):
        assert time.monotonic() < ends
        with contextlib.suppress(TransientError):
            tracker.log_artifact(*model)
    assert server.requests["gql/CreateArtifact"] == 1


def test_a_sample_that_was_deleted_from_the_server_is_sent_again(
    server: WandbServer, tmp_path: Path, run_dir: Path
) -> None:
    feed, steps = Feeder(run_dir), zip((100, 200), evaluations(tmp_path), strict=True)
    first, second = [reported(run_dir, feed, given, step) for step, given in steps]
    tracker = opened(tmp_path, run_dir)
    tracker.log_predictions(*first)
    (sample,) = server.committed("shapes-val")
    server.versions.remove(sample)
    server.fault("CommitArtifact$", 400, times=1, body=b'{"errors": [{"message": "invalid reference"}]}')
    with pytest.raises(wandb.Error):
        tracker.log_predictions(*second)
    insist(tracker, *second)
    assert len(server.committed("shapes-val")) == 1
    named = contents(server.committed(PREDICTIONS)[-1])
    assert server.referred(named["images/0.jpg"]["ref"]) is server.committed("shapes-val")[0]


def test_the_uploader_of_a_training_delivers_them(
    server: WandbServer, tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    with ut.start_run("wandb", project="balloon", id="run0abcd") as run:
        for step, given in zip((100, 200), evaluations(tmp_path), strict=True):
            run.log_predictions(given, step=step, aliases=["best"])
        assert run.finish(timeout_s=200)
    whole(server)


def test_old_names_lead_to_the_same_tables(server: WandbServer, tmp_path: Path, run_dir: Path) -> None:
    tracker, feed = opened(tmp_path, run_dir, names="mmdet2"), Feeder(run_dir)
    for step, given in zip((100, 200), evaluations(tmp_path), strict=True):
        tracker.log_predictions(*reported(run_dir, feed, given, step))
    tracker.log_artifact(*feed.artifact("run-run0abcd-model", {"model.pth": b"weights"}, aliases=("epoch_1",)))
    tracker.close("FINISHED", TS)
    whole(server)
    (val,) = server.committed("val")
    first, second = server.committed("run_run0abcd_pred")
    (model,) = server.committed("run_run0abcd_model")
    assert (val.type, second.type, model.type) == ("dataset", "evaluation", "model")
    assert second.aliases == {"best", "latest", "iter_200"} and model.aliases == {"epoch_1", "latest"}
    assert not any(version.files for version in (val, first, second, model))
    assert set(contents(second)) == {"eval_data.table.json"} and set(contents(model)) == {"model.pth"}
    url = contents(second)["eval_data.table.json"]["ref"]
    assert server.referred(url) is server.committed(PREDICTIONS)[1]


def test_wandb_sync_takes_an_offline_run_whole(server: WandbServer, tmp_path: Path, run_dir: Path) -> None:
    tracker, feed = opened(tmp_path, run_dir, "offline", names="mmdet2"), Feeder(run_dir)
    for step, given in zip((100, 200), evaluations(tmp_path), strict=True):
        tracker.log_predictions(*reported(run_dir, feed, given, step))
    tracker.close("FINISHED", TS)
    assert server.runs == {}
    (folder,) = offline_folders(tmp_path / "work")
    subprocess.run([sys.executable, "-m", "wandb", "sync", str(folder)], check=True, timeout=120)
    whole(server)
    assert not server.committed("val"), "old names are references"
