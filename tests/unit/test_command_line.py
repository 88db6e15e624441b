"""The command line: what it prints for programs, and its exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from rich.console import Console
from typer.testing import CliRunner

from unified_tracker import _display
from unified_tracker._delivery import LaneReport, RunReport
from unified_tracker._journal import JournalReader
from unified_tracker._ledger import Refused
from unified_tracker.cli import app

PLUGIN = """
import contextlib, json, os
from pathlib import Path
from unified_tracker import Address, Backend, ConfigurationError, Finding, RejectedError, TransientError
from unified_tracker.hookspecs import hookimpl

class Tracker:
    rebuilds = False
    last = 0
    def __init__(self, options):
        self.mode = options.get("mode", "online")
    def open(self, run):
        if os.environ["TAPE"] == "down":
            raise TransientError("the tape is away")
        return Address(run.id, "tape://" + self.mode)
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

@contextlib.contextmanager
def going_online(run_dir, options):
    if os.environ["TAPE"] == "uploaded":
        raise ConfigurationError("it has been uploaded by hand")
    yield {**options, "mode": "online"}

@hookimpl
def tracker_backend():
    return Backend(
        name="tape", check=dict, create=lambda run, run_dir, options: Tracker(options), going_online=going_online,
        diagnose=lambda options: [Finding("tape", "warning", "it is dusty", "a cloth")],
    )
"""
TRAINING = """
import os
import unified_tracker as ut
how, mode = (os.environ.get(name, default) for name, default in (("HOW", ""), ("MODE", "online")))
run = ut.start_run("tape", project="p", name="first", options={"tape": {"mode": mode}})
run.log_metrics({"loss": 0.5}, step=1)
if how == "lose":
    run._journal.lost = 3  # what a full disk leaves
if how == "kill":
    os.kill(os.getpid(), 9)
uploader = run._uploader._process.pid
run.finish(how or "FINISHED", timeout_s=0) if how != "lose" else run.finish(timeout_s=0)
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
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("UNIFIED_TRACKER_LINGER_S", "0.1")
    monkeypatch.setenv("TAPE", "fine")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def work(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one run whose uploader has given up: nothing of it is delivered."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    train(folder, TAPE="down")
    return folder


def train(folder: Path, **environment: str) -> None:
    """Train in a folder of its own, and wait for the uploader."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", TRAINING],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in {0, -9}, done.stderr
    deadline = time.monotonic() + 120
    (run_dir,) = (folder / "unified-tracker").iterdir()
    while uploading(run_dir):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def uploading(run_dir: Path) -> bool:
    """True while an uploader is at work on a run directory, or has not begun yet."""
    if not (run_dir / "uploader.lock").exists():
        return True
    try:
        with FileLock(run_dir / "uploader.lock", timeout=0):
            return False
    except Timeout:
        return True


def command(*arguments: str) -> tuple[int, str]:
    """Exit status and output."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def listed(*arguments: str) -> Any:
    return json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)


def test_sync_delivers_what_was_left(work: Path) -> None:
    assert listed("runs")[0]["backends"][0]["state"] == "pending"
    code, output = command("sync")
    assert (code, "tape: delivered" in output) == (0, True)
    (run,) = listed("runs")
    assert (run["name"], run["project"], run["outcome"], run["lost"]) == ("first", "p", "delivered", 0)
    assert [(lane["backend"], lane["state"], lane["address"]) for lane in run["backends"]] == [
        ("tape", "delivered", "tape://online")
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
    (run_dir,) = (work / "unified-tracker").iterdir()
    with FileLock(run_dir / "uploader.lock"):
        code, output = command("sync")
    assert code == 5
    assert "another uploader is at work" in output


def test_runs_tell_how_trainings_ended_and_what_waits(work: Path) -> None:
    for how in ("FAILED", "kill"):
        train(work / how, HOW=how, TAPE="down")
    found = listed("runs")
    assert [run["training"] for run in found] == ["FINISHED", "FAILED", "KILLED"]
    for run in found:
        (lane,) = run["backends"]
        entries = JournalReader(Path(run["directory"]) / "journal").read(final=True)
        assert (lane["pending"], lane["records"]) == (len(entries), 0)
        assert lane["pending_bytes"] > 100
        assert lane["error"] == "the tape is away"
    assert "3 runs: 3 pending" in command("runs")[1]


def test_what_was_set_aside_is_told_with_the_reason(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPE", "picky")
    command("sync")
    ((refused,),) = [lane["refused"] for lane in listed("runs")[0]["backends"]]
    assert refused[1:] == ["metrics loss", "no numbers"]
    assert "no numbers" in command("runs", "--verbose")[1]
    assert "no numbers" not in command("runs")[1]


def test_what_the_disk_did_not_take_is_a_status_of_its_own(work: Path) -> None:
    train(work / "full", HOW="lose")
    assert command("sync")[0] == 3
    assert [run["lost"] for run in listed("runs")] == [0, 3]
    assert "3 records could not be written to the disk" in command("runs")[1]


def test_all_finds_what_waits_in_any_folder_until_it_is_delivered(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "site")
    assert [run["outcome"] for run in listed("runs", "--all")] == ["pending"]
    assert command("sync", "--all")[0] == 0
    assert listed("runs", "--all") == []
    assert command("sync", "--all") == (0, "no run of this user is waiting\n")


def test_a_run_that_its_uploader_has_delivered_does_not_wait(work: Path) -> None:
    train(work / "fine")
    assert [run["outcome"] for run in listed("runs")] == ["pending", "delivered"]
    assert [run["outcome"] for run in listed("runs", "--all")] == ["pending"]


def test_a_run_that_was_recorded_offline_goes_online_from_its_start(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(work / "offline", MODE="offline")
    assert [lane["address"] for run in listed("runs") for lane in run["backends"]] == [None, "tape://offline"]
    monkeypatch.setenv("TAPE", "uploaded")
    code, output = command("sync", "--online")
    assert (code, "it has been uploaded by hand" in output) == (1, True)
    assert listed("runs")[1]["backends"][0]["address"] == "tape://offline"
    monkeypatch.setenv("TAPE", "fine")
    assert command("sync", "--online", "--dry-run")[0] == 0  # says nothing else than `sync --dry-run`
    assert command("sync", "--online")[0] == 0
    run = listed("runs")[1]
    entries = JournalReader(Path(run["directory"]) / "journal").read(final=True)
    assert run["backends"][0]["address"] == "tape://online"
    assert run["backends"][0]["records"] == len(entries)


def test_a_run_that_is_being_delivered_does_not_change_its_way(work: Path) -> None:
    train(work / "offline", MODE="offline")
    run_dir = Path(listed("runs")[1]["directory"])
    with FileLock(run_dir / "uploader.lock"):
        code, output = command("sync", "--online", str(run_dir))
    assert (code, "is being delivered by another process" in output) == (1, True)


def test_damaged_files_of_a_lane_hide_no_run(work: Path) -> None:
    run_dir = Path(listed("runs")[0]["directory"])
    (run_dir / "lanes" / "tape.json").write_text("{")
    (run_dir / "lanes" / "tape.db").write_bytes(b"no database" * 1000)
    (run,) = listed("runs")
    assert (run["outcome"], "damaged" in run["backends"][0]["error"]) == ("pending", True)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_runs_fit_the_terminal(width: int) -> None:
    address = "http://tracking.example.org:5000/#/experiments/12/runs/0123456789abcdef0123456789abcdef"
    lanes = [
        LaneReport("mlflow", "pending", 5, 1_000_000, 280_000_000, 1, [Refused(7, "x", "y")], address, "", "e " * 250),
        LaneReport("wandb", "set aside", 10, 0, 0, 1, [Refused(1 << 40 | 7, "metrics x", "r" * 300)], None, "", None),
    ]
    report = RunReport("abcd1234", "#0 first", "balloon", "/data/" + "f" * 90, 0, "KILLED", "pending", 2, lanes)
    console = Console(width=width, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    _display.show_run(console, report, verbose=True)
    _display.show_sum(console, [report], command="unified-tracker sync")
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    flat = "".join(text.split())
    for fact in (
        "abcd1234",
        "KILLED",
        "1000000recordswaiting,280.0MB",
        address,
        "#1.7metricsx:" + "r" * 300,
        "e" * 250,
    ):
        assert fact in flat
    assert "2 records could not be" in text


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
