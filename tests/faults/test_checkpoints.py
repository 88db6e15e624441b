"""The bytes that were logged are the bytes that arrive, whatever the framework, the disk or the network does."""

from __future__ import annotations

import hashlib
import os
import random
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import mlflow
import mlflow.artifacts
import msgspec
import pytest

import unified_tracker as ut
from tests.faults.conftest import IMPATIENT, WAIT_S, append, finished, processes_of, recorded, state, sync, wait_until
from tests.faults.exactness import assert_exact, only_run
from tests.faults.proxy import FaultProxy, Request
from unified_tracker._rundir import RunDirectory
from unified_tracker._staging import Staging
from unified_tracker.records import Artifact, Metrics, StagedFile

ROUNDS = range(int(os.environ.get("FAULTS_ROUNDS", "1")))
NAME = "run-abcd1234-model"
WEIGHTS = 3 << 20


def weights(seed: int) -> bytes:
    return random.Random(seed).randbytes(WEIGHTS)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_upload(request: Request) -> bool:
    return request.method == "PUT" and len(request.body) >= WEIGHTS


def versions(server: str, run_dir: Path, folder: Path) -> list[tuple[int, str]]:
    """Step and digest of every checkpoint that the server holds and calls complete, oldest first."""
    run = only_run(server, run_dir)
    if urllib.request.urlopen(f"{server}/version").read() < b"3":
        root = f"{run.info.artifact_uri}/run-{run.data.tags['unified_tracker.run_id']}-model"
        items = mlflow.artifacts.list_artifacts(root, tracking_uri=server)
        if not any(item.path.endswith("versions.json") for item in items):
            return []
        local = Path(mlflow.artifacts.download_artifacts(root, tracking_uri=server, dst_path=str(folder)))
        listed = msgspec.json.decode((local / "versions.json").read_bytes())
        files = {each["metadata"]["step"]: local / f"v{each['version']}" / next(iter(each["files"])) for each in listed}
        return [(step, digest(path.read_bytes())) for step, path in files.items()]
    client = mlflow.MlflowClient(server)
    models = client.search_logged_models([run.info.experiment_id], max_results=100)
    found = []
    for model in sorted(models, key=lambda model: model.creation_timestamp):
        if model.source_run_id == run.info.run_id and str(model.status) == "READY":
            target = folder / model.model_id
            target.mkdir(parents=True)
            root = str(model.artifact_location)
            local = mlflow.artifacts.download_artifacts(root, tracking_uri=server, dst_path=str(target))
            files = [path for path in Path(local).rglob("*") if path.is_file()]
            assert len(files) == 1, files
            found.append((int(model.params["step"]), digest(files[0].read_bytes())))
    return found


@pytest.mark.parametrize("round_number", ROUNDS)
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "plain loop"])
def test_of_a_checkpoint_written_over_ten_times_each_version_arrives_as_logged_or_is_told(
    adapter: bool, round_number: int, proxy: FaultProxy, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server takes its time with each of them. An adapter says when it writes; nothing is ever told then."""
    for name, value in IMPATIENT.items():
        monkeypatch.setenv(name, value)
    proxy.fault("delay", matches=is_upload, seconds=0.3)
    dice = random.Random(f"{adapter}{round_number}")
    best, expected = tmp_path / "model_best.pth", {}
    project = f"{tmp_path.parent.name}-{tmp_path.name}"
    with ut.start_run("mlflow", project=project, dir=tmp_path, options={"mlflow": {"tracking_uri": proxy.url}}) as run:
        assert run.dir is not None
        wait_until(RunDirectory(run.dir).guarded)
        for step in range(1, 11):
            if adapter:
                run._before_rewrite(best)
            best.write_bytes(content := weights(1000 * round_number + step))
            expected[step] = digest(content)
            run.log_checkpoint(best, step=step)
            time.sleep(dice.random() * 0.1)
        best.write_bytes(b"what the training goes on with")
    wait_until(lambda: state(run.dir).done)
    arrived = versions(server, run.dir, tmp_path / "got")
    assert len(dict(arrived)) == len(arrived)
    assert all(expected[step] == found for step, found in arrived), "other bytes than those that were logged"
    told = state(run.dir).set_aside
    assert len(arrived) + told == 10
    assert not (adapter and told)
    tags = only_run(server, run.dir).data.tags
    assert tags["unified_tracker.delivery"] == ("partial" if told else "complete")
    assert told == 0 or "written over in place" in tags["unified_tracker.set_aside_why"]


def test_a_checkpoint_written_over_before_anybody_could_secure_it_is_told_on_the_run(
    proxy: FaultProxy, server: str, tmp_path: Path
) -> None:
    """No uploader was there; the next one finds other bytes than those that were logged."""
    run_dir = recorded(tmp_path, proxy.url, [])
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(weights(1))
    staging, rest = Staging(run_dir, 1), [Metrics(1000, 1, {"x": 1.0})]
    held = staging.hold(path, path.name, "link")
    append(run_dir, Artifact(1001, NAME, "model", (held,), step=1), *rest, finished())
    path.write_bytes(weights(2))
    assert sync(tmp_path).returncode == 3
    assert versions(server, run_dir, tmp_path / "got") == []
    tags = only_run(server, run_dir).data.tags
    assert tags["unified_tracker.delivery"] == "partial"
    assert "checkpoint.pth was written over in place after it had been logged" in tags["unified_tracker.set_aside_why"]
    assert_exact(server, run_dir)


@pytest.mark.parametrize("round_number", ROUNDS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_of_an_upload_that_is_cut_off_no_part_is_trusted_and_one_whole_copy_arrives(
    share: float,
    round_number: int,
    proxy: FaultProxy,
    server: str,
    tmp_path: Path,
    uploaders: Callable,
) -> None:
    """Cut twice, and the uploader killed in between."""
    path = tmp_path / "model_0000099.pth"
    path.write_bytes(content := weights(round_number))
    stat = path.stat()
    record = Artifact(1001, NAME, "model", (StagedFile(path.name, str(path), stat.st_size, stat.st_mtime_ns),), step=1)
    run_dir = recorded(tmp_path, proxy.url, [record, finished()])
    fault = proxy.fault("partial", matches=is_upload, share=share)
    first = uploaders(run_dir)
    wait_until(lambda: proxy.counts["partial"])
    assert versions(server, run_dir, tmp_path / "early") == []
    first.kill()
    first.wait(WAIT_S)
    wait_until(lambda: not processes_of(run_dir))
    fault.times = 1
    assert uploaders(run_dir).wait(WAIT_S) == 0
    assert versions(server, run_dir, tmp_path / "got") == [(1, digest(content))]
    assert state(run_dir).set_aside == 0
