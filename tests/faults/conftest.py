"""A real `mlflow server`, a proxy in front of it that goes wrong, and trainings and uploaders that can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.faults.proxy import FaultProxy
from tests.mlflow_serving import mlflow_server
from unified_tracker._journal import Journal, now_ms
from unified_tracker._rundir import LaneState, RunDirectory
from unified_tracker.records import Finished, Record, Started
from unified_tracker.testing import run_info

# Python of an environment whose MLflow runs the server; default: the one that runs the tests.
SERVER_PYTHON = os.environ.get("FAULTS_MLFLOW_PYTHON", sys.executable)
WAIT_S = 120.0
IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "UNIFIED_TRACKER_RETRY_CAP_S": "1"}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real `mlflow server`, of the version that is asked for."""
    with mlflow_server(tmp_path_factory.mktemp("server"), SERVER_PYTHON) as uri:
        yield uri


@pytest.fixture
def proxy(server: str) -> Iterator[FaultProxy]:
    """A proxy in front of the server; as long as nothing is ordered it forwards."""
    found = FaultProxy(server)
    yield found
    found.close()


@pytest.fixture
def uploaders() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts uploaders as `start_run` does; what is left of them at the end of the test is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(run_dir: Path, **environment: str) -> subprocess.Popen[bytes]:
        with (run_dir / "uploader.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "unified_tracker._uploader", str(run_dir), "30"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=run_dir,
                env={**os.environ, **IMPATIENT, **environment},
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def recorded(
    folder: Path, uri: str, records: Sequence[Record], *, only: dict[str, Any] | None = None, **others: dict[str, Any]
) -> Path:
    """A run directory as a training leaves it that has logged these records.

    Args:
        folder: Where; names the project, since the tests share a server.
        uri: Tracking URI for MLflow.
        records: What was logged after the start.
        only: Backends and their options, instead of MLflow.
        others: Backends and their options, beside MLflow.
    """
    directory = RunDirectory(folder / "unified-tracker" / "abcd1234")
    mlflow = {"tracking_uri": uri, "artifact_location": None, "run_id": None, "owned": True}
    info = run_info("mlflow")
    project = f"{folder.parent.name}-{folder.name}"
    directory.create(msgspec.structs.replace(info, project=project, backends=only or {"mlflow": mlflow, **others}))
    writer = Journal(directory.journal)
    assert writer.append(Started(now_ms(), writer.attempt, os.getpid(), info.name, None, {}))
    for record in records:
        assert writer.append(record)
    writer.close()
    return directory.path


def append(run_dir: Path, *records: Record) -> None:
    """Log more into a run directory, as its next attempt."""
    writer = Journal(run_dir / "journal")
    for record in records:
        assert writer.append(record)
    writer.close()


def finished() -> Finished:
    return Finished(now_ms(), "FINISHED")


def state(run_dir: Path, backend: str = "mlflow") -> LaneState:
    """What the lane says; its beginning if it has not said anything yet."""
    return RunDirectory(run_dir).lane_state(backend) or LaneState(backend, 0)


def sync(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`unified-tracker sync`, to its end."""
    return start_sync(folder, *arguments, **environment)()


def start_sync(folder: Path, *arguments: str, **environment: str) -> Callable[[], subprocess.CompletedProcess[str]]:
    """`unified-tracker sync` in the background; what is returned waits for it."""
    command = [sys.executable, "-m", "unified_tracker.cli", "sync", str(folder), *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **IMPATIENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def wait() -> subprocess.CompletedProcess[str]:
        out, err = process.communicate(timeout=WAIT_S)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return wait


def wait_until(condition: Callable[[], object], why: Callable[[], str] = lambda: "", timeout_s: float = WAIT_S) -> None:
    """Wait for a condition; generous, since the machine may be busy."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s in vain {why()}"
        time.sleep(0.05)


def processes_of(run_dir: Path) -> list[int]:
    """Uploader and lanes of a run directory, found by their command lines."""
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=True).stdout
    marks = ("unified_tracker._uploader", "unified_tracker._lane")
    lines = [line.split(None, 1) for line in listed.splitlines()]
    return [int(pid) for pid, command in lines if str(run_dir) in command and any(mark in command for mark in marks)]


def kill(*pids: int) -> None:
    """SIGKILL; a process that is gone already is none the worse."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
