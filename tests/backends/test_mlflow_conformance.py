"""The conformance suite on MLflow: SQLite directly, and a real `mlflow server`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import mlflow
import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.mlflow_reading import ALIAS, MlflowRun
from tests.mlflow_serving import mlflow_server
from unified_tracker import Tracker
from unified_tracker.backends._mlflow import create
from unified_tracker.records import Media, StagedFile
from unified_tracker.testing import Stored, StoredVersion, Subject, TrackerConformance, entry, run_info

NAME = "unified_tracker.name."


class MlflowSubject:
    def __init__(self, uri: str, run_dir: Path, run_id: str) -> None:
        self.uri, self.run_dir, self.run_id = uri, run_dir, run_id

    def tracker(self) -> Tracker:
        options = {"tracking_uri": self.uri, "artifact_location": None, "run_id": None, "owned": True}
        return create(run_info("mlflow", self.run_id), self.run_dir, options)

    def stored(self) -> Stored:
        run = MlflowRun(self.uri, self.run_id)
        original = {tag.removeprefix(NAME): value for tag, value in run.tags.items() if tag.startswith(NAME)}
        # A tag holds 5000 characters at most; no name in the suite is longer.
        metrics = {original.get(name, name): rows for name, rows in run.metrics().items()}
        versions = [
            StoredVersion(
                run.model_files(model),
                frozenset(tag.removeprefix(ALIAS) for tag in model.tags if tag.startswith(ALIAS)),
                {metric.key: metric.value for metric in model.metrics or []},
            )
            for model in run.models()
        ]
        return Stored(
            metrics, run.params, run.tags, {"run-abcd1234-model": versions}, frozenset(run.files()), run.status
        )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: made once, since its forty migrations take seconds."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class TestMlflowOnSqlite(TrackerConformance):
    keeps_non_finite: ClassVar[bool] = False

    @pytest.fixture
    def subject(self, tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
        monkeypatch.chdir(tmp_path)
        shutil.copyfile(template, tmp_path / "mlflow.db")
        return MlflowSubject(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, self.RUN)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[tuple[str, Path]]:
    """A real `mlflow server` with its artifact proxy: address and database."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(template, folder / "mlflow.db")
    with mlflow_server(folder) as uri:
        yield uri, folder / "mlflow.db"


class TestMlflowServer(TrackerConformance):
    keeps_non_finite: ClassVar[bool] = False

    @pytest.fixture
    def subject(self, tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Subject:
        # One server for all tests: each has a project of its own, so the same run id is another run.
        uri, _ = server
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        project = hashlib.md5(str(tmp_path).encode(), usedforsecurity=False).hexdigest()
        return ServerSubject(uri, tmp_path, self.RUN, project)


class ServerSubject(MlflowSubject):
    """Deletes nothing: a marker in the run id keeps the tests' runs apart on the shared server."""

    def __init__(self, uri: str, run_dir: Path, run_id: str, project: str) -> None:
        super().__init__(uri, run_dir, run_id)
        self.project = project

    def tracker(self) -> Tracker:
        tracker = super().tracker()
        experiment = self.project
        opened = tracker.open
        tracker.open = lambda run: opened(msgspec.structs.replace(run, project=experiment))  # type: ignore[method-assign]
        return tracker

    def stored(self) -> Stored:
        client = mlflow.MlflowClient(self.uri)
        mine = client.get_experiment_by_name(self.project).experiment_id
        for experiment in client.search_experiments():
            if experiment.experiment_id not in {mine, "0"}:
                client.delete_experiment(experiment.experiment_id)
        return super().stored()


def test_media_stand_where_mlflows_own_pages_look_for_them(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(template, tmp_path / "mlflow.db")
    subject = MlflowSubject(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, "abcd1234")
    picture = np.arange(60 * 50 * 3, dtype=np.uint8).reshape(60, 50, 3)
    np.save(tmp_path / "p.npy", picture)
    (tmp_path / "t.json").write_text(json.dumps({"columns": ["a"], "data": [[1], [None]]}))
    tracker = subject.tracker()
    tracker.open(run_info("mlflow", "abcd1234"))
    for _ in range(2):  # a replay
        tracker.log_media(
            entry(1, Media(1000, "array", "val/sample", 3, StagedFile("p", "p.npy", 1, 1))), tmp_path / "p.npy"
        )
        tracker.log_media(
            entry(2, Media(1000, "table", "val/t", 3, StagedFile("t", "t.json", 1, 1))), tmp_path / "t.json"
        )
    tracker.close("FINISHED", 2000)
    run = MlflowRun(subject.uri, "abcd1234")
    images = sorted(run.files("images"))
    assert len(images) == 2
    assert images[1].startswith("images/val~sample+step+3+timestamp+1000+")
    assert np.array_equal(np.asarray(Image.open(BytesIO(run.files()[images[1]]))), picture)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", subject.uri)  # `load_table` asks the global one
    table = run.client.load_table(run.run.info.experiment_id, "tables/val/t/step_000000003.json", [run.id])
    assert table["a"].tolist()[0] == 1
