"""Data sets and weights by reference in MMDetection, and what a run says it was made from; real trainings on MLflow."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mlflow_reading import MlflowRun
from tests.mmdet.conftest import Training, train
from tests.referencing import datasets_of, log_dataset, records_of
from unified_tracker._rundir import find_runs

TRAIN, VAL = "mlflow-artifact://shapes-train", "mlflow-artifact://datasets/shapes-val:v0"
WARNING = "unified_tracker.warning.classes"


@dataclass(frozen=True)
class Store:
    """An MLflow that holds both splits as artifacts."""

    uri: str
    digest: str


@pytest.fixture(scope="module")
def store(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    digest = log_dataset(shapes, "train", uri, "shapes-train", folder)
    log_dataset(shapes, "val", uri, "shapes-val", folder)
    return Store(uri, digest)


def by_reference(train_root: str = TRAIN, val_root: str = VAL) -> dict[str, Any]:
    """The data sets of the stock configuration, from artifacts."""
    changes: dict[str, Any] = {}
    for split, root in (("train", train_root), ("val", val_root), ("test", val_root)):
        where = {"data_root": root, "ann_file": "annotations.json", "data_prefix": {"img": "images/"}}
        changes |= {f"{split}_dataloader.dataset.{key}": value for key, value in where.items()}
    for split in ("val", "test"):
        changes[f"{split}_evaluator.0.ann_file"] = f"{val_root}/annotations.json"
    return changes


def run(shapes: Path, store: Store, output: Path, changes: dict[str, Any], **wish: Any) -> Training:
    wish = {"epochs": 1, "uri": store.uri, **wish}
    return train(shapes, output, set={"default_hooks.checkpoint.interval": 1, **changes}, timeout_s=280, **wish)


def read(store: Store, training: Training) -> MlflowRun:
    assert training.code == 0, training.text
    return MlflowRun(store.uri, training.said["run_id"])


@pytest.fixture(scope="module")
def trained(shapes: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Training:
    workers = {f"{split}_dataloader.num_workers": 1 for split in ("train", "val")}
    return run(shapes, store, tmp_path_factory.mktemp("trained"), {**by_reference(), **workers})


@pytest.fixture(scope="module")
def tuned(shapes: Path, store: Store, trained: Training, tmp_path_factory: pytest.TempPathFactory) -> Training:
    weights = f"mlflow-artifact://run-{trained.said['run_id']}-model:best"
    output = tmp_path_factory.mktemp("tuned")
    return run(shapes, store, output, {**by_reference(), "load_from": weights})


def test_stock_data_set_reads_an_artifact_by_its_reference(store: Store, trained: Training) -> None:
    stored = read(store, trained)
    assert stored.params["effective.training_images"] == "16"
    assert [step for step, _ in stored.history("val/bbox/mAP")] == [4]


def test_data_sets_are_inputs_of_the_run(store: Store, trained: Training) -> None:
    stored = read(store, trained)
    assert datasets_of(stored) >= {("training", "shapes-train"), ("validation", "shapes-val")}
    records = records_of(stored)
    assert set(records) == {"train shapes-train", "val shapes-val"}
    assert records["train shapes-train"].reference == f"{TRAIN}:latest"
    assert records["val shapes-val"].version == "v0"
    assert WARNING not in stored.tags


def test_checkpoints_name_the_data_set_that_they_were_trained_on(store: Store, trained: Training) -> None:
    (model,) = read(store, trained).models()
    assert store.digest in {*model.tags.values(), *model.params.values()}


def test_predictions_of_a_data_set_by_reference_have_their_images(store: Store, trained: Training) -> None:
    stored = read(store, trained)
    assert any("shapes-val-val" in tag for tag in stored.tags), sorted(stored.tags)
    assert "unified_tracker.refused" not in stored.tags


def test_fine_tuning_starts_from_the_tracked_weights(store: Store, trained: Training, tuned: Training) -> None:
    stored = read(store, tuned)
    (record,) = (record for record in records_of(stored).values() if record.role == "weights")
    (model,) = stored.client.get_run(stored.id).inputs.model_inputs
    assert model.model_id == read(store, trained).models()[0].model_id
    assert record.run == read(store, trained).id
    assert WARNING not in stored.tags


def test_test_of_a_tracked_checkpoint_is_a_run_whose_results_go_to_it(
    shapes: Path, store: Store, tuned: Training, tmp_path: Path
) -> None:
    weights = f"mlflow-artifact://run-{tuned.said['run_id']}-model:latest"
    stored = read(store, run(shapes, store, tmp_path, {**by_reference(), "load_from": weights}, steps=["test"]))
    ((step, value),) = stored.history("test/bbox/mAP")
    assert step == 4
    records = records_of(stored)
    assert {record.role for record in records.values()} == {"test", "checkpoint"}
    (checkpoint,) = (record for record in records.values() if record.role == "checkpoint")
    assert (checkpoint.metrics["test/bbox/mAP"], checkpoint.step) == (value, 4)
    (model,) = read(store, tuned).models()
    assert {metric.key: metric.value for metric in model.metrics}["test/bbox/mAP"] == value


def test_mlflows_own_uris_stand_in_load_from_and_init_cfg(
    shapes: Path, store: Store, trained: Training, tmp_path: Path
) -> None:
    (model,) = read(store, trained).models()
    uri = f"models:/{model.model_id}"
    changes = {**by_reference(), "model.init_cfg": {"type": "Pretrained", "checkpoint": uri}}
    stored = read(store, run(shapes, store, tmp_path, changes))
    assert [each.model_id for each in stored.client.get_run(stored.id).inputs.model_inputs] == [model.model_id]


def test_weights_and_data_without_references_are_inputs_too(
    shapes: Path, store: Store, trained: Training, tmp_path: Path
) -> None:
    local = trained.work_dir / "epoch_1.pth"
    records = records_of(read(store, run(shapes, store, tmp_path, {"load_from": str(local)})))
    assert {record.role for record in records.values()} == {"train", "val", "weights"}
    assert len(records["weights epoch_1.pth"].digest) == 64
    (data,) = (record for record in records.values() if record.role == "train")
    assert data.file is not None
    assert data.file.staged == str(shapes / "train.json")
    assert data.metadata["images"] == f"{shapes / 'train'}/"
    assert data.metadata["num_images"] == 16


def test_resumed_training_did_not_start_from_the_weights_in_its_configuration(
    shapes: Path, store: Store, tmp_path: Path
) -> None:
    trouble = {"type": "Trouble", "kind": "raise", "at": 6}
    first = run(shapes, store, tmp_path, {}, epochs=2, more_hooks=[trouble])
    assert first.code != 0
    (directory,) = find_runs(tmp_path)
    last = str(first.work_dir / "epoch_1.pth")
    second = run(shapes, store, tmp_path, {"resume": True, "load_from": last}, epochs=2)
    assert second.said["run_id"] == directory.path.name
    assert {record.role for record in records_of(read(store, second)).values()} == {"train", "val"}


def test_classes_that_do_not_fit_are_warned_about(
    shapes: Path, store: Store, trained: Training, tmp_path: Path
) -> None:
    """The same number, another order: everything runs, and every label means something else."""
    classes = ["square", "circle", "triangle"]
    changes = {
        **by_reference(),
        "train_dataloader.dataset.metainfo": {"classes": classes},
        "load_from": f"mlflow-artifact://run-{trained.said['run_id']}-model:latest",
    }
    warning = read(store, run(shapes, store, tmp_path, changes)).tags[WARNING]
    sets = "the training set 'shapes-train' and the validation set 'shapes-val'"
    assert f"{sets} have the same classes in another order" in warning
    assert f"the checkpoint mlflow-artifact://run-{trained.said['run_id']}-model:latest and the training set" in warning


def test_classes_that_the_annotations_do_not_have_are_warned_about(shapes: Path, store: Store, tmp_path: Path) -> None:
    changes = {**by_reference(), "train_dataloader.dataset.metainfo": {"classes": ["circle", "square", "hexagon"]}}
    warning = read(store, run(shapes, store, tmp_path, changes)).tags[WARNING]
    assert "only the annotations of mlflow-artifact://shapes-train:latest has 'triangle'" in warning


def test_spawned_workers_read_references(shapes: Path, store: Store, tmp_path: Path) -> None:
    changes = {**by_reference(), "env_cfg.mp_cfg.mp_start_method": "spawn", "train_dataloader.num_workers": 1}
    assert multiprocessing.get_start_method(allow_none=True) in {None, "fork"}  # of this process
    assert read(store, run(shapes, store, tmp_path, changes)).status == "FINISHED"


def test_missing_artifact_ends_before_training(shapes: Path, store: Store, tmp_path: Path) -> None:
    done = run(shapes, store, tmp_path, by_reference(train_root="mlflow-artifact://no-such-data"))
    assert done.code != 0
    assert "no-such-data" in done.text.strip().splitlines()[-1]
    assert list(find_runs(tmp_path)) == []
