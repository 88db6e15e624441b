"""The W&B tracker in a process of its own: killed, deprived of wandb's service, and seen by W&B's own reader."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("wandb")

from tests.backends.wandb_feeding import clean_environment
from tests.backends.wandb_files import OfflineRun, offline_folders, read_run
from unified_tracker.demo._wandb_files import DamagedFileError


@pytest.fixture(autouse=True)
def empty_run_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment(monkeypatch, tmp_path)
    (tmp_path / "run").mkdir()


def only_run(tmp_path: Path) -> OfflineRun:
    (folder,) = offline_folders(tmp_path / "work")
    return read_run(folder)


DRIVER = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.backends.wandb_feeding import TS, Feeder, info
from unified_tracker.backends._wandb_tracker import WandbTracker
tmp_path = Path({tmp!r}); run = info(tmp_path); run_dir = tmp_path / "run"; feed = Feeder(run_dir)
tracker = WandbTracker(run, run_dir, {{"mode": "offline"}})
tracker.open(run)
for step in range(2000):
    tracker.log_metrics([feed.metrics(step, loss=step)])
    if step == 1500 and "kill" in sys.argv:
        os.kill(os.getpid(), 9)
    if step == 1500 and "core" in sys.argv:
        import subprocess, time
        core = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True)
        os.kill(int(core.stdout.split()[0]), 9)
        time.sleep(0.5)
tracker.close("FINISHED", TS)
"""


def drive(tmp_path: Path, how: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    script = DRIVER.format(root=root, tmp=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", script, how],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_after_sigkill_the_next_try_leaves_one_whole_run(tmp_path: Path) -> None:
    assert drive(tmp_path, "kill").returncode == -signal.SIGKILL
    (half,) = offline_folders(tmp_path / "work")
    with contextlib.suppress(DamagedFileError):
        assert read_run(half).exit_code is None
    done = drive(tmp_path, "whole")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert run.column("loss") == list(range(2000)) and run.exit_code == 0
    assert not half.exists()


def test_when_wandb_s_service_dies_the_process_ends_soon(tmp_path: Path) -> None:
    done = drive(tmp_path, "core")
    assert done.returncode == 1
    assert "TransientError" in done.stderr and "W&B's client has stopped" in done.stderr


def test_wandb_s_own_reader_takes_the_run(tmp_path: Path) -> None:
    assert drive(tmp_path, "whole").returncode == 0
    (folder,) = offline_folders(tmp_path / "work")

    def wandb(*arguments: str) -> str:
        command = [sys.executable, "-m", "wandb", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout

    if "inspect" not in wandb("leet", "--help"):
        pytest.skip("this version of wandb has no reader of its own")
    seen = json.loads(wandb("leet", "inspect", "--summary", "--json", str(folder)))
    assert (seen["run_id"], seen["exit_code"], seen["step"]) == ("run0abcd", 0, 1999)
    assert (seen["summary"]["loss"], seen["tags"]) == (1999, ["stage:dev"])
