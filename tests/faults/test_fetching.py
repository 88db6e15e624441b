"""Fetching from a real server: once for several processes, through faults, and never half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unified_tracker as ut
from tests.faults.proxy import FaultProxy

IMAGES = 6
REFERENCE = "mlflow-artifact://faults-data:latest"


@pytest.fixture(scope="module")
def dataset(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A data set on the server, as `faults-data:latest`; odd names included."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "images").mkdir()
    content = {f"images/ä {number}+&.jpg": os.urandom(20_000) for number in range(IMAGES)} | {"annotations.json": b"{}"}
    for path, data in content.items():
        (folder / path).write_bytes(data)
    options = {"mlflow": {"tracking_uri": server}}
    with ut.start_run("mlflow", dir=folder.parent / "runs", options=options, rank=0) as run:
        run.log_artifact(folder, name="faults-data", type="dataset")
    return content


def getting(uri: str, cache: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "unified_tracker.cli",
        "artifact",
        "get",
        "mlflow-artifact://faults-data:latest",
        "--json",
    ]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "UNIFIED_TRACKER_CACHE": str(cache)}
    return subprocess.Popen(
        command, env=environment, cwd=cache.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def content(process: subprocess.Popen[str]) -> dict[str, bytes]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    folder = Path(json.loads(out)["path"])
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def downloads(proxy: FaultProxy) -> list[str]:
    """Files of the data set that were asked for."""
    asked = [request.path for request in proxy.requests if request.method == "GET"]
    return [path for path in asked if "/mlflow-artifacts/artifacts/" in path and "/faults-data/v0/" in path]


def test_two_processes_fetch_an_artifact_once(dataset: dict[str, bytes], proxy: FaultProxy, tmp_path: Path) -> None:
    processes = [getting(proxy.url, tmp_path / "cache") for _ in range(2)]
    assert [content(process) for process in processes] == [dataset, dataset]
    assert len(downloads(proxy)) == len(set(downloads(proxy))) == len(dataset)


def test_a_fetch_that_was_cut_short_gets_what_is_missing(
    dataset: dict[str, bytes], proxy: FaultProxy, tmp_path: Path
) -> None:
    cut = proxy.fault(
        "cut", times=None, matches=lambda request: "ä%203" in request.path or "%C3%A4%203" in request.path
    )
    out, err = (process := getting(proxy.url, tmp_path / "cache")).communicate(timeout=120)
    assert (process.returncode, out) == (4, ""), err
    assert not list((tmp_path / "cache").rglob("content"))
    assert proxy.counts[cut.kind] > 0
    proxy.calm()
    before = len(downloads(proxy))
    assert content(getting(proxy.url, tmp_path / "cache")) == dataset
    again = downloads(proxy)[before:]
    assert any("%203" in path for path in again)
    assert len(again) < len(dataset)
