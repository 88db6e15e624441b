"""Checkpoints that are no ordinary file: read-only, empty, a folder, mostly holes, vanished, on another file system."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from pathlib import Path

import mlflow
import pytest

import unified_tracker as ut
from tests.faults.conftest import IMPATIENT
from tests.faults.exactness import only_run

HOLES = int(os.environ.get("FAULTS_SPARSE_MIB", "64")) << 20


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def test_what_is_no_ordinary_file_arrives_as_it_is_and_what_is_gone_is_told(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if urllib.request.urlopen(f"{server}/version").read() < b"3":
        pytest.skip("a server without models; test_server_versions has what becomes of checkpoints there")
    for name, value in IMPATIENT.items():
        monkeypatch.setenv(name, value)
    read_only, empty, sharded, sparse = (tmp_path / name for name in ("ro.pth", "empty.pth", "sharded", "sparse.pth"))
    read_only.write_bytes(os.urandom(1 << 16))
    read_only.chmod(0o400)
    empty.touch()
    (sharded / "rank").mkdir(parents=True)
    for number in range(3):
        (sharded / "rank" / f"{number}.bin").write_bytes(os.urandom(1000 + number))
    with sparse.open("wb") as file:
        file.truncate(HOLES)
        file.seek(HOLES // 2)
        file.write(b"in the middle")
    sources = [read_only, empty, sharded, sparse]
    elsewhere = Path("/dev/shm")
    if elsewhere.is_dir() and elsewhere.stat().st_dev != tmp_path.stat().st_dev:
        sources.append(elsewhere / f"{tmp_path.name}-{os.getpid()}.pth")
        sources[-1].write_bytes(os.urandom(1 << 16))
    expected = [sorted(digest(path) for path in ([s] if s.is_file() else s.rglob("*.bin"))) for s in sources]
    project = f"odd-{tmp_path.name}"
    with ut.start_run("mlflow", project=project, dir=tmp_path, options={"mlflow": {"tracking_uri": server}}) as run:
        for step, source in enumerate(sources):
            run.log_checkpoint(source, step=step)
        run.log_checkpoint(tmp_path / "gone.pth", step=99)
        for source in sources[4:]:
            source.unlink()
        assert run.refused == 1
        assert run.finish(timeout_s=240)
    client = mlflow.MlflowClient(server)
    stored = only_run(server, run.dir)
    assert stored.data.tags["unified_tracker.refused"] == "1"
    assert stored.data.tags["unified_tracker.delivery"] == "complete"
    got = tmp_path / "got"
    got.mkdir()
    arrived: dict[int, list[str]] = {}
    for model in client.search_logged_models([stored.info.experiment_id]):
        target = {"tracking_uri": server, "dst_path": str(got / model.model_id)}
        folder = Path(mlflow.artifacts.download_artifacts(str(model.artifact_location), **target))
        arrived[int(model.params["step"])] = sorted(digest(path) for path in folder.rglob("*") if path.is_file())
    assert [arrived[step] for step in range(len(sources))] == expected
