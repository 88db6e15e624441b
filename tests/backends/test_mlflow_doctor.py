"""The doctor in front of a real `mlflow server`: there, and gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from unified_tracker.backends import _mlflow


def found(uri: str) -> dict[str, tuple[str, str]]:
    findings = _mlflow.diagnose(_mlflow.check({"tracking_uri": uri}))
    return {finding.check: (finding.level, finding.message) for finding in findings}


def test_a_server_is_found_with_its_version_and_missed_when_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.version import VERSION

    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("unified_tracker._probe.TIMEOUT_S", 60.0)  # a server's first answers on a busy machine
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        assert found(uri) == {
            "mlflow server": ("ok", f"{uri} answers, version {VERSION}"),
            "mlflow access": ("ok", "no credentials; the server lets us in"),
        }
    finally:
        os.killpg(process.pid, 9)
        process.wait(timeout=30)
    ((level, message),) = found(uri).values()
    assert (level, "does not answer" in message) == ("error", True)
