"""What goes through a server of any supported version: files, pictures, checkpoints, and a replay of everything."""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import mlflow
import mlflow.artifacts
import numpy as np

from tests.faults.conftest import WAIT_S, finished, recorded, state
from tests.faults.exactness import assert_exact, only_run
from tests.faults.proxy import FaultProxy, Request
from unified_tracker.records import Artifact, Media, Metrics, Params, StagedFile, Tags

NAME = "run-abcd1234-model"


def staged(folder: Path, name: str, content: bytes) -> StagedFile:
    path = folder / name.replace("/", "_")
    path.write_bytes(content)
    return StagedFile(name, str(path), len(content), path.stat().st_mtime_ns)


def test_everything_arrives_on_this_server_also_when_first_answers_are_lost(
    proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    pixels = io.BytesIO()
    np.save(pixels, np.zeros((4, 5, 3), np.uint8))
    picture = staged(tmp_path, "p.npy", pixels.getvalue())
    records = [
        Params(1000, {"lr": 0.02, "long": "y" * 9000}),
        Metrics(1001, 1, {"loss": 0.5, "nan": float("nan"), "AR@100": 0.1}),
        Metrics(1002, 1, {f"wide/{number}": float(number) for number in range(300)}),
        Media(1003, "array", "val/sample", 1, picture),
        Artifact(1004, None, "file", (staged(tmp_path, "sub/config.yaml", b"a: 1"),)),
        Artifact(1005, NAME, "model", (staged(tmp_path, "one.pth", b"1" * 9999),), ("best",), {}, {"AP": 0.4}, 1, 0.5),
        Artifact(1006, NAME, "model", (staged(tmp_path, "two.pth", b"2" * 9999),), ("best",), {}, {"AP": 0.5}, 2, 1.0),
        Tags(1007, {"stage": "dev"}),
    ]
    run_dir = recorded(tmp_path, proxy.url, [*records, finished()])
    seen: set[tuple[str, str]] = set()

    def first_of_its_kind(request: Request) -> bool:
        key = (request.method, request.path.rpartition("/")[2])
        new = key not in seen
        seen.add(key)
        return new

    proxy.fault("drop_answer", matches=first_of_its_kind)
    assert uploaders(run_dir).wait(WAIT_S) == 0
    found = only_run(server, run_dir)
    root = found.info.artifact_uri
    folder = Path(mlflow.artifacts.download_artifacts(root, tracking_uri=server, dst_path=str(tmp_path / "got")))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files["sub/config.yaml"] == b"a: 1"
    assert json.loads(files["params.json"])["long"] == "y" * 9000
    assert sum(name.startswith("images/val~sample+step+1") for name in files) == 2
    assert found.data.tags["unified_tracker.delivery"] == "complete"
    if urllib.request.urlopen(f"{server}/version").read() < b"3":
        versions = json.loads(files[f"{NAME}/versions.json"])
        assert files[f"{NAME}/v1/two.pth"] == b"2" * 9999
        assert [version["aliases"] for version in versions] == [[], ["latest", "best"]]
        assert versions[1]["metadata"] == {"step": 2, "epoch": 1.0, "metrics": {"AP": 0.5}}
        assert found.data.tags["unified_tracker.alias.best"] == f"{NAME}/v1"
        assert sum("older than 3.0" in note for note in state(run_dir).notes) == 1
        assert_exact(server, run_dir)
    else:
        page = mlflow.MlflowClient(server).search_logged_models([found.info.experiment_id])
        models = sorted(page, key=lambda model: model.creation_timestamp)
        assert [("unified_tracker.alias.best" in model.tags, model.params["step"]) for model in models] == [
            (False, "1"),
            (True, "2"),
        ]
        assert [metric.value for model in models for metric in model.metrics] == [0.4, 0.5]
        assert state(run_dir).notes == ()
