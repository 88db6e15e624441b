"""A backend's client that hangs or dies is its own trouble: the lane is started again, other backends do not notice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.examples.conftest import fake_distribution
from tests.faults.conftest import WAIT_S, finished, recorded, state, wait_until
from tests.faults.exactness import assert_exact
from tests.faults.proxy import FaultProxy
from unified_tracker.records import Metrics

ROWS = [Metrics(1000 + i, i, {"x": float(i)}) for i in range(300)]

# A backend that writes steps to a file and hangs, or dies, in its first call; afterwards it works.
PLUGIN = """
import os, signal, time
from pathlib import Path
from unified_tracker import Address, Backend
from unified_tracker.hookspecs import hookimpl

class Tracker:
    rebuilds = False

    def __init__(self, folder, options):
        self.file, self.once, self.trouble, self._held = folder / "steps", folder / "once", options["trouble"], 0

    def open(self, run):
        return Address("id", "file")

    def log_metrics(self, entries):
        if self.trouble != "none" and not self.once.exists():
            self.once.touch()
            if self.trouble == "hang":
                time.sleep(3600)
            elif self.trouble == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                os._exit(9)
        with self.file.open("a") as file:
            file.writelines(f"{entry.record.step}\\n" for entry in entries)
        self._held = entries[-1].sequence

    def log_params(self, entries): pass
    def set_tags(self, entries): pass
    def log_media(self, entry, file): pass
    def log_artifact(self, entry, files): pass
    def held(self): return self._held
    def close(self, status, ended_ms): pass

@hookimpl
def tracker_backend():
    return Backend("acme", check=dict, create=lambda run, folder, options: Tracker(folder, options))
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the backend `acme` for processes that the test starts."""
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": PLUGIN})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize("trouble", ["hang", "stop", "die"])
def test_a_client_that_never_returns_is_ended_and_started_again(
    trouble: str, plugin: None, tmp_path: Path, uploaders: Callable
) -> None:
    run_dir = recorded(tmp_path, "unused", [*ROWS, finished()], only={"acme": {"trouble": trouble}})
    assert uploaders(run_dir, UNIFIED_TRACKER_CALL_LIMIT_S="1").wait(WAIT_S) == 0
    assert (run_dir / "steps").read_text().split() == [str(i) for i in range(300)]
    assert state(run_dir, "acme").done
    log = (run_dir / "uploader.log").read_text()
    assert ("hangs in a call" in log) == (trouble != "die")


def test_a_call_that_takes_long_but_less_than_its_limit_is_left_alone(
    proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    run_dir = recorded(tmp_path, proxy.url, [*ROWS, finished()])
    proxy.fault("delay", seconds=2.5, times=2, matches=lambda request: request.path.endswith("log-batch"))
    assert uploaders(run_dir, UNIFIED_TRACKER_CALL_LIMIT_S="60").wait(WAIT_S) == 0
    assert "hangs" not in (run_dir / "uploader.log").read_text()
    assert_exact(server, run_dir)


def test_a_client_that_cannot_be_loaded_is_told_where_people_look(
    plugin: None, tmp_path: Path, uploaders: Callable
) -> None:
    run_dir = recorded(tmp_path, "unused", [*ROWS, finished()], only={"acme": {}})  # KeyError: 'trouble'
    assert uploaders(run_dir).wait(WAIT_S) == 2
    assert state(run_dir, "acme").error == "the lane ended with KeyError: 'trouble'"


@pytest.mark.parametrize("trouble", ["refuse", "black_hole"])
def test_one_backend_that_is_down_does_not_hold_up_the_other(
    trouble: str, plugin: None, proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    run_dir = recorded(tmp_path, proxy.url, [*ROWS, finished()], acme={"trouble": "none"})
    if trouble == "refuse":
        proxy.refuse()
    else:
        proxy.fault("black_hole")
    uploader = uploaders(run_dir, MLFLOW_HTTP_REQUEST_TIMEOUT="3")
    wait_until(lambda: state(run_dir, "acme").done and state(run_dir).error)
    assert (run_dir / "steps").read_text().split() == [str(i) for i in range(300)]
    assert state(run_dir).held == 0
    if trouble == "refuse":
        proxy.accept()
    else:
        proxy.calm()
    assert uploader.wait(WAIT_S) == 0
    assert_exact(server, run_dir)
