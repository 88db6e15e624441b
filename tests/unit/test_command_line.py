"""The command line: what it prints for programs, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unified_tracker.cli import app

PLUGIN = """
import json, os
from pathlib import Path
from unified_tracker import Address, Backend, RejectedError, TransientError
from unified_tracker.hookspecs import hookimpl

class Tracker:
    rebuilds = False
    last = 0
    def open(self, run):
        if os.environ["TAPE"] == "down":
            raise TransientError("the tape is away")
        return Address(run.id, "tape://1")
    def _take(self, entries):
        self.last = entries[-1].sequence
    log_params = set_tags = _take
    def log_metrics(self, entries):
        if os.environ["TAPE"] == "picky":
            raise RejectedError("no numbers")
        self._take(entries)
    def log_media(self, entry, file): ...
    def log_artifact(self, entry, files): ...
    def held(self):
        return self.last
    def close(self, status, ended_ms): ...

@hookimpl
def tracker_backend():
    return Backend(name="tape", check=dict, create=lambda run, run_dir, options: Tracker())
"""
TRAINING = """
import os
import unified_tracker as ut
run = ut.start_run("tape", project="p", name="first")
run.log_metrics({"loss": 0.5}, step=1)
uploader = run._uploader._process.pid
run.finish(timeout_s=0)
os.waitpid(uploader, 0)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a backend whose trouble is `$TAPE`, seen by this process and the ones it starts."""
    folder = tmp_path / "site"
    info = folder / "tape-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tape\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[unified_tracker]\ntape = tape_plugin\n")
    (folder / "tape_plugin.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("UNIFIED_TRACKER_LINGER_S", "0.1")
    monkeypatch.setenv("TAPE", "fine")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def work(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one run whose uploader has given up: nothing of it is delivered."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    environment = {**os.environ, "TAPE": "down"}
    subprocess.run([sys.executable, "-c", TRAINING], env=environment, check=True, capture_output=True, timeout=60)
    return folder


def command(*arguments: str) -> tuple[int, str]:
    """Exit status and output."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def listed(*arguments: str) -> Any:
    return json.loads(command(*arguments, "--json")[1])


def test_sync_delivers_what_was_left(work: Path) -> None:
    assert listed("runs")[0]["backends"][0]["state"] == "pending"
    code, output = command("sync")
    assert (code, "tape: delivered" in output) == (0, True)
    (run,) = listed("runs")
    assert (run["name"], run["project"], run["outcome"], run["lost"]) == ("first", "p", "delivered", 0)
    assert [(lane["backend"], lane["state"], lane["address"]) for lane in run["backends"]] == [
        ("tape", "delivered", "tape://1")
    ]
    assert command("sync")[0] == 0  # a second time there is nothing to do


def test_dry_run_delivers_nothing(work: Path) -> None:
    assert command("sync", "--dry-run")[0] == 2
    assert listed("runs")[0]["outcome"] == "pending"


def test_a_backend_that_is_away_leaves_it_pending_and_says_so(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPE", "down")
    code, output = command("sync")
    assert code == 2
    assert "the tape is away" in output
    assert "what is pending stays in" in output


def test_records_that_are_refused_are_a_status_of_their_own(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPE", "picky")
    code, output = command("sync")
    assert code == 3
    assert "1 set aside" in output
    assert listed("runs")[0]["backends"][0]["state"] == "set aside"


def test_another_uploader_at_work_is_left_alone(work: Path) -> None:
    from filelock import FileLock

    (run_dir,) = (work / "unified-tracker").iterdir()
    with FileLock(run_dir / "uploader.lock"):
        code, output = command("sync")
    assert code == 5
    assert "another uploader is at work" in output


@pytest.mark.parametrize("arguments", [["empty"], ["missing"], ["empty", "missing"]])
@pytest.mark.parametrize("name", ["sync", "runs"])
def test_nothing_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert command(name, *arguments)[0] == 4


def test_a_run_that_is_named_twice_is_delivered_once(work: Path) -> None:
    assert len(listed("runs", ".", "unified-tracker", str(work))) == 1


def test_backends_say_what_brings_them(site: Path) -> None:
    entries = {entry["name"]: entry for entry in listed("backends")}
    assert set(entries) >= {"mlflow", "wandb", "tape"}
    assert (entries["tape"]["distribution"], entries["tape"]["version"]) == ("tape", "1.0")
    for name in ("mlflow", "wandb"):
        usable = entries[name]["usable"]
        assert usable or f'pip install "unified-tracker[{name}]"' in entries[name]["trouble"]


def test_the_demo_says_what_is_missing_without_frameworks(tmp_path: Path) -> None:
    pytest.importorskip("typer")
    import importlib.util

    if importlib.util.find_spec("detectron2") is not None:
        pytest.skip("Detectron2 is installed")
    code, output = command("demo", "--output", str(tmp_path))
    assert code == 1
    assert "nox -s demo" in output
