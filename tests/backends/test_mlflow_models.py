"""Checkpoints in MLflow: what is beside the weights, what is registered, and what a retry makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import msgspec
import pytest

from tests.mlflow_reading import MlflowRun
from tests.mlflow_serving import mlflow_server
from unified_tracker import ConfigurationError
from unified_tracker._detector import CARD_FILE, Detector
from unified_tracker.backends._mlflow import check
from unified_tracker.backends._mlflow_registry import registry_alias
from unified_tracker.backends._mlflow_tracker import MlflowTracker
from unified_tracker.records import Artifact
from unified_tracker.testing import entry, run_info

DETECTOR = Detector(
    framework="detectron2", config="config.yaml", text="MODEL: {}\n", classes=("cat", "dog"), category_ids=(17, 18)
)
SERVING = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "detector.py", "framework.py"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: made once, since its forty migrations take seconds."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(template, folder / "mlflow.db")
    with mlflow_server(folder) as uri:
        yield uri


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database, and a real server."""
    monkeypatch.chdir(tmp_path)
    if request.param == "server":
        return str(request.getfixturevalue("server"))
    shutil.copyfile(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def opened(uri: str, tmp_path: Path) -> Callable[..., MlflowTracker]:
    """Opens a run of its own name for each test, as a lane does."""

    def open_(run_id: str, **options: Any) -> MlflowTracker:
        folder = tmp_path / run_id
        folder.mkdir(exist_ok=True)
        tracker = MlflowTracker(folder, check({"tracking_uri": uri, **options}))
        tracker.open(msgspec.structs.replace(run_info("mlflow", run_id), project=tmp_path.name))
        return tracker

    return open_


def log(
    tracker: MlflowTracker,
    folder: Path,
    step: int,
    *aliases: str,
    detector: Detector | None = DETECTOR,
    **metrics: float,
) -> None:
    """Log a checkpoint, with what belongs beside it."""
    weights = folder / f"model_{step}.pth"
    weights.write_bytes(f"weights of {tracker._own_id} at {step}".encode())
    files = {weights.name: weights}
    for name, content in (detector.companions(weights) if detector else {}).items():
        files[name] = folder / f"{step}-{name}"
        files[name].write_bytes(content)
    metadata = {"best_metric": "bbox.AP"} if "best" in aliases else {}
    values = {name.replace("__", "/"): value for name, value in metrics.items()}
    record = Artifact(1000 + step, f"run-{tracker._own_id}-model", "model", (), aliases, metadata, values, step, None)
    tracker.log_artifact(entry(step, record), files)


def aliases_of(uri: str, name: str) -> dict[str, str]:
    """Alias to the step of the model that it names."""
    client = mlflow.MlflowClient(uri)
    found = client.get_registered_model(name).aliases
    steps = {}
    for alias, version in found.items():
        steps[alias] = step_of(client, client.get_model_version(name, version))
    return steps


def step_of(client: mlflow.MlflowClient, version: Any) -> str:
    """Of the model that a version is; the store keeps no `model_id` for it."""
    return str(client.get_logged_model(version.source.removeprefix("models:/")).params["step"])


def test_a_checkpoint_with_a_card_is_a_model_that_mlflow_knows(
    opened: Callable[..., MlflowTracker], uri: str, tmp_path: Path
) -> None:
    tracker = opened("aaaa0001")
    log(tracker, tmp_path, 1)
    log(tracker, tmp_path, 2, detector=None)
    with_card, plain = MlflowRun(uri, "aaaa0001").models()
    run = MlflowRun(uri, "aaaa0001")
    assert set(run.model_files(with_card)) == {"model_1.pth", "config.yaml", CARD_FILE} | SERVING
    assert set(run.model_files(plain)) == {"model_2.pth"}
    folder = mlflow.artifacts.download_artifacts(
        artifact_uri=with_card.artifact_location, tracking_uri=uri, dst_path=str(tmp_path / "got")
    )
    described = mlflow.models.Model.load(folder)
    assert described.model_id == with_card.model_id
    assert described.signature.inputs.input_names() == ["image"]
    assert [param.name for param in described.signature.params.params] == ["score_threshold"]
    assert described.metadata == {"framework": "detectron2", "classes": ["cat", "dog"]}
    lines = (Path(folder) / "requirements.txt").read_text().splitlines()
    assert lines[0] == f"mlflow=={mlflow.__version__}"
    assert any(line.startswith("torch==") for line in lines)
    assert tracker.notes == []


def test_what_is_generated_counts_neither_for_the_version_nor_against_a_retry(
    opened: Callable[..., MlflowTracker], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = opened("aaaa0002")
    with monkeypatch.context() as broken:
        broken.setattr(tracker._client, "finalize_logged_model", lambda *_: (_ for _ in ()).throw(ConnectionError()))
        with pytest.raises(Exception, match="ConnectionError"):
            log(tracker, tmp_path, 1)
    (before,) = MlflowRun(uri, "aaaa0002").models()
    first = MlflowRun(uri, "aaaa0002").model_files(before)
    for attempt in (opened("aaaa0002"), opened("aaaa0002")):
        log(attempt, tmp_path, 1)
    run = MlflowRun(uri, "aaaa0002")
    (after,) = run.models()
    assert (after.model_id, str(after.status)) == (before.model_id, "READY")
    assert run.model_files(after) == first


def test_weights_in_a_folder_are_stored_and_said_to_be_not_servable(
    opened: Callable[..., MlflowTracker], uri: str, tmp_path: Path
) -> None:
    (tmp_path / "sharded").mkdir()
    files = {"shard_0.pth": tmp_path / "shard_0.pth"}
    files["shard_0.pth"].write_bytes(b"0")
    for name, content in DETECTOR.companions(tmp_path / "sharded").items():
        files[name] = tmp_path / name
        files[name].write_bytes(content)
    tracker = opened("aaaa0003")
    record = Artifact(1, "run-aaaa0003-model", "model", (), step=1)
    tracker.log_artifact(entry(1, record), files)
    run = MlflowRun(uri, "aaaa0003")
    assert set(run.model_files(run.models()[0])) == set(files)
    assert ["its weights are no single file" in note for note in tracker.notes] == [True]


def test_the_best_and_the_last_are_registered_once_with_their_aliases(
    opened: Callable[..., MlflowTracker], uri: str, tmp_path: Path
) -> None:
    for _ in range(2):  # the second time everything comes again, from the beginning
        tracker = opened("bbbb0001", registered_model_name="detector one")
        log(tracker, tmp_path, 10, "iter_10", "best", "best-bbox.AP", bbox__AP=20.0)
        log(tracker, tmp_path, 20, "iter_20", "best", "best-bbox.AP", bbox__AP=40.0)
        log(tracker, tmp_path, 30, "iter_30", bbox__AP=30.0)
        tracker.close("FINISHED", 2000)
    client = mlflow.MlflowClient(uri)
    versions = client.search_model_versions("name = 'detector one'")
    assert sorted(step_of(client, each) for each in versions) == ["10", "20", "30"]
    assert aliases_of(uri, "detector one") == {"best": "20", "best-bbox_AP": "20", "last": "30"}
    run = MlflowRun(uri, "bbbb0001")
    by_source = {each.source: each for each in versions}
    for model in run.models():
        version = by_source[f"models:/{model.model_id}"]
        assert version.tags["unified_tracker.digest"] == model.tags["unified_tracker.digest"]
        assert version.run_id == run.id


def test_a_worse_run_does_not_take_best_away_and_a_better_one_does(
    opened: Callable[..., MlflowTracker], uri: str, tmp_path: Path
) -> None:
    for run_id, step, value in (("bbbb0011", 1, 50.0), ("bbbb0012", 2, 20.0), ("bbbb0013", 3, 60.0)):
        tracker = opened(run_id, registered_model_name="detector two")
        log(tracker, tmp_path, step, "best", "best-bbox.AP", bbox__AP=value)
        tracker.close("FINISHED", 2000)
        holder = "1" if step < 3 else "3"
        assert aliases_of(uri, "detector two") == {"best": holder, "best-bbox_AP": holder, "last": str(step)}


def test_a_registered_model_is_found_by_its_alias(
    opened: Callable[..., MlflowTracker], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = opened("bbbb0021", registered_model_name="detector three")
    log(tracker, tmp_path, 7, "best")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = mlflow.artifacts.download_artifacts("models:/detector three@best", dst_path=str(tmp_path / "got"))
    assert (Path(folder) / "model_7.pth").read_bytes() == b"weights of bbbb0021 at 7"


def test_without_the_name_nothing_is_registered(opened: Callable[..., MlflowTracker], uri: str, tmp_path: Path) -> None:
    before = len(mlflow.MlflowClient(uri).search_registered_models())
    tracker = opened("bbbb0031")
    log(tracker, tmp_path, 1, "best")
    tracker.close("FINISHED", 2000)
    assert len(mlflow.MlflowClient(uri).search_registered_models()) == before


@pytest.mark.parametrize("name", ["a/b", "models:/x", " ", "x" * 257, 7])
def test_a_name_that_mlflow_would_refuse_is_refused_at_once(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="registered_model_name must be a text of at most 256 characters"):
        check({"registered_model_name": name})


def test_aliases_of_the_registry_stay_apart() -> None:
    given = ["best", "best-bbox.AP", "best-coco.bbox_mAP", "best-min(IoU)", "best-min[IoU]", "last", "best-größe"]
    mapped = [registry_alias(alias) for alias in given]
    assert mapped[:3] == ["best", "best-bbox_AP", "best-coco_bbox_mAP"]
    assert len(set(mapped)) == len(given)
