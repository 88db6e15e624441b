"""A real `mlflow models serve` for tests, and what it answers."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.mlflow_serving import answers

WITHOUT_TRACKER = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"unified_tracker", "unified_tracker_detectron2", "unified_tracker_mmdet"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
"""


@contextlib.contextmanager
def served(
    model: str, tracking_uri: str, folder: Path, *, without_tracker: bool = False, **settings: Any
) -> Iterator[str]:
    """Address at which a model answers; ended with all its processes.

    Args:
        model: "models:/m-..." or "models:/name@alias".
        tracking_uri: Where it is.
        folder: An empty one, for the log.
        without_tracker: Serve where no module of ours can be imported.
        settings: The model's.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri}
    if settings:
        environment["SERVING_MODEL_CONFIG"] = json.dumps(settings)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # it starts uvicorn by name
    if without_tracker:
        (folder / "sitecustomize.py").write_text(WITHOUT_TRACKER)
        environment["PYTHONPATH"] = str(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=environment)
    try:
        end = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/ping"):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


def ask(url: str, payload: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of the answer."""
    body = json.dumps(payload).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def encoded(path: Path) -> str:
    """A picture as it travels."""
    return base64.b64encode(path.read_bytes()).decode()
