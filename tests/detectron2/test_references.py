"""Data sets and weights by reference in Detectron2, and what a run says it was made from; real trainings on MLflow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.detectron2.conftest import Training, train
from tests.mlflow_reading import MlflowRun
from tests.referencing import datasets_of, log_dataset, records_of
from unified_tracker import TrackerError
from unified_tracker._rundir import find_runs

TRAIN, VAL = "mlflow-artifact://shapes-train:latest", "mlflow-artifact://datasets/shapes-val:v0"
DATA = ["DATASETS.TRAIN", (TRAIN,), "DATASETS.TEST", (VAL,)]
WARNING = "unified_tracker.warning.classes"


@dataclass(frozen=True)
class Store:
    """An MLflow that holds both splits as artifacts."""

    uri: str
    digest: str

    def options(self, output: Path) -> list[object]:
        return ["TRACKER.MLFLOW.TRACKING_URI", self.uri, "OUTPUT_DIR", str(output / "detectron2")]


@pytest.fixture(scope="module")
def store(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    digest = log_dataset(shapes, "train", uri, "shapes-train", folder)
    log_dataset(shapes, "val", uri, "shapes-val", folder)
    return Store(uri, digest)


def run(shapes: Path, store: Store, output: Path, *opts: object, **wish: object) -> Training:
    opts = (*store.options(output), "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2, "TRACKER.INTERVAL", 1, *opts)
    return train(shapes, output, prepare=True, iterations=4, opts=list(opts), timeout_s=280, **wish)


def read(store: Store, training: Training) -> MlflowRun:
    assert training.code == 0, training.text
    return MlflowRun(store.uri, training.said["run_id"])


@pytest.fixture(scope="module")
def trained(shapes: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return run(shapes, store, tmp_path_factory.mktemp("trained"), *DATA)


@pytest.fixture(scope="module")
def tuned(shapes: Path, store: Store, trained: Training, tmp_path_factory: pytest.TempPathFactory) -> Training:
    weights = f"mlflow-artifact://run-{read(store, trained).tags['unified_tracker.run_id']}-model:iter_2"
    return run(shapes, store, tmp_path_factory.mktemp("tuned"), *DATA, "MODEL.WEIGHTS", weights)


def test_training_reads_its_data_sets_from_artifacts(store: Store, trained: Training) -> None:
    stored = read(store, trained)
    assert stored.params["effective.training_images"] == "16"
    assert [step for step, _ in stored.history("val/bbox/mAP")] == [2, 4]
    assert stored.params["DATASETS.TRAIN"] == f"['{TRAIN}']" or TRAIN in stored.params["DATASETS.TRAIN"]


def test_data_sets_are_inputs_of_the_run(store: Store, trained: Training) -> None:
    stored = read(store, trained)
    assert datasets_of(stored) >= {("training", "shapes-train"), ("validation", "shapes-val")}
    records = records_of(stored)
    assert set(records) == {"train shapes-train", "val shapes-val"}
    assert records["train shapes-train"].reference == TRAIN
    assert records["train shapes-train"].version == "v0"
    assert WARNING not in stored.tags


def test_checkpoints_name_the_data_set_that_they_were_trained_on(store: Store, trained: Training) -> None:
    for model in read(store, trained).models():
        assert store.digest in {*model.tags.values(), *model.params.values()}


def test_predictions_of_a_data_set_by_reference_stand_under_its_name(store: Store, trained: Training) -> None:
    tags = read(store, trained).tags
    assert any("shapes-val-val" in tag for tag in tags), sorted(tags)


def test_fine_tuning_starts_from_the_tracked_weights(store: Store, trained: Training, tuned: Training) -> None:
    stored = read(store, tuned)
    (record,) = (record for record in records_of(stored).values() if record.role == "weights")
    (model,) = stored.client.get_run(stored.id).inputs.model_inputs
    origin = next(each for each in read(store, trained).models() if each.model_id == model.model_id)
    assert origin.params["step"] == "2"
    assert record.run == read(store, trained).id
    assert "Loading from mlflow-artifact://run-" in tuned.text
    assert WARNING not in stored.tags


def test_evaluation_of_a_tracked_checkpoint_is_a_run_whose_results_go_to_it(
    shapes: Path, store: Store, tuned: Training, tmp_path: Path
) -> None:
    weights = f"mlflow-artifact://run-{tuned.said['run_id']}-model:iter_2"
    done = run(shapes, store, tmp_path, *DATA, "MODEL.WEIGHTS", weights, eval_only=True)
    stored = read(store, done)
    ((step, value),) = stored.history("test/bbox/mAP")
    assert step == 2
    records = records_of(stored)
    assert {record.role for record in records.values()} == {"test", "checkpoint"}
    (checkpoint,) = (record for record in records.values() if record.role == "checkpoint")
    assert checkpoint.metrics["test/bbox/mAP"] == value
    assert checkpoint.step == 2
    (model,) = (each for each in read(store, tuned).models() if each.params["step"] == "2")
    assert {metric.key: metric.value for metric in model.metrics}["test/bbox/mAP"] == value


def test_weights_and_data_without_references_are_inputs_too(
    shapes: Path, store: Store, trained: Training, tmp_path: Path
) -> None:
    local = trained.work_dir / "model_final.pth"
    stored = read(store, run(shapes, store, tmp_path, "MODEL.WEIGHTS", str(local)))
    records = records_of(stored)
    assert set(records) == {"train shapes_train", "val shapes_val", "weights model_final.pth"}
    assert len(records["weights model_final.pth"].digest) == 64
    data = records["train shapes_train"]
    assert data.file is not None
    assert data.file.staged == str(shapes / "train.json")
    assert data.metadata["images"] == str(shapes / "train")
    assert data.metadata["num_images"] == 16


def test_resumed_training_did_not_start_from_the_weights_in_its_configuration(
    shapes: Path, store: Store, trained: Training, tmp_path: Path
) -> None:
    first = run(shapes, store, tmp_path, trouble=["raise", 3])
    assert first.code != 0
    (directory,) = find_runs(tmp_path)
    weights = f"mlflow-artifact://run-{trained.said['run_id']}-model:latest"
    second = run(shapes, store, tmp_path, "MODEL.WEIGHTS", weights, resume=True)
    assert second.said["run_id"] == directory.path.name
    assert {record.role for record in records_of(read(store, second)).values()} == {"train", "val"}


def test_classes_that_do_not_fit_are_warned_about(shapes: Path, store: Store, tmp_path: Path) -> None:
    """Detectron2 itself ends this training, at the first prediction that is no class of the validation set."""
    log_dataset(shapes, "train", store.uri, "shapes-renamed", tmp_path, classes=["square", "circle", "triangle"])
    data = ["DATASETS.TRAIN", ("mlflow-artifact://shapes-renamed:latest",), "DATASETS.TEST", (VAL,)]
    run(shapes, store, tmp_path / "run", *data, "MODEL.ROI_HEADS.NUM_CLASSES", 4)
    (directory,) = find_runs(tmp_path / "run")
    warning = MlflowRun(store.uri, directory.path.name).tags[WARNING]
    assert "the model has 4 classes, the training set" in warning
    assert "the same classes in another order: label 0 is 'square' in the one, 'circle' in the other" in warning


def test_missing_weights_end_before_anything_is_built(shapes: Path, store: Store, tmp_path: Path) -> None:
    weights = "mlflow-artifact://no-such-model:best"
    done = run(shapes, store, tmp_path, *DATA, "MODEL.WEIGHTS", weights)
    assert done.code != 0
    assert "no-such-model" in done.text.splitlines()[-1]
    assert list(find_runs(tmp_path)) == []


def test_artifact_without_weights_says_what_it_holds(shapes: Path, store: Store, tmp_path: Path) -> None:
    done = run(shapes, store, tmp_path, *DATA, "MODEL.WEIGHTS", TRAIN)
    assert done.code != 0
    assert "must hold exactly one file of weights" in done.text
    assert "annotations.json" in done.text


def test_two_processes_train_on_one_fetch(shapes: Path, store: Store, tmp_path: Path) -> None:
    done = run(shapes, store, tmp_path, *DATA, processes=2)
    assert done.code == 0, done.text
    (directory,) = find_runs(tmp_path)
    stored = MlflowRun(store.uri, directory.path.name)
    assert stored.params["effective.world_size"] == "2"
    assert len(records_of(stored)) == 2


def test_lazy_configuration_names_references_and_files_are_read_by_them(
    shapes: Path, store: Store, tmp_path: Path
) -> None:
    """In this process, which trains nothing. The artifact numbers its classes in another order than its categories."""
    omegaconf = pytest.importorskip("omegaconf")
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.utils.file_io import PathManager

    from unified_tracker_detectron2 import prepare

    log_dataset(shapes, "val", store.uri, "shapes-odd", tmp_path, labels=[2, 0, 1])
    name = "mlflow-artifact://shapes-odd:latest"
    config = {"dataloader": {"train": {"dataset": {"names": name}}, "test": {"dataset": {"names": [name]}}}}
    for _ in range(2):  # the second time is harmless
        prepare(omegaconf.OmegaConf.create(config), options={"mlflow": {"tracking_uri": store.uri}})
    assert MetadataCatalog.get(name).thing_classes == ["square", "triangle", "circle"]
    assert MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id == {1: 2, 2: 0, 3: 1}
    coco = json.loads((shapes / "val.json").read_text())
    records = DatasetCatalog.get(name)
    given = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        given[annotation["image_id"]].append([2, 0, 1][annotation["category_id"] - 1])
    assert {each["image_id"]: [one["category_id"] for one in each["annotations"]] for each in records} == given
    assert all(Path(record["file_name"]).is_file() for record in records)
    with PathManager.open(f"{name}/annotations.json") as file:
        assert json.load(file)["images"] == coco["images"]
    assert PathManager.ls(f"{name}/images") == sorted(image["file_name"] for image in coco["images"])
    assert not PathManager.exists(f"{name}/images/none.jpg")
    with pytest.raises(TrackerError, match="exactly one file of weights"):
        PathManager.get_local_path(name)
