"""What the same Detectron2 training leaves in W&B's offline run, read back from W&B's own file."""

from __future__ import annotations

import hashlib

import pytest

from tests.backends.wandb_files import OfflineRun, offline_folders, read_run
from tests.detectron2.conftest import Training
from tests.detectron2.test_hook import holds, own_log
from tests.mlflow_reading import MlflowRun


@pytest.fixture(scope="module")
def stored(trained: Training) -> OfflineRun:
    assert trained.code == 0, trained.text
    (folder,) = offline_folders(trained.output)
    return read_run(folder)


def rows_of(run: OfflineRun, name: str) -> list[tuple[int, float]]:
    """Step on our axis and value of every row that holds a metric."""
    return [(row["trainer/step"], float(row[name])) for row in run.rows if name in row]


def test_every_number_of_detectron2s_own_log_is_stored(trained: Training, stored: OfflineRun) -> None:
    rows = own_log(trained.work_dir)
    missing = [row for row in rows if not holds(rows_of(stored, row[0]), *row[1:])]
    assert len(rows) > 60
    assert missing == []


def test_both_backends_hold_the_same_rows(trained: Training, stored: OfflineRun) -> None:
    mlflow = MlflowRun(trained.uri, trained.said["run_id"]).metrics()
    mlflow.pop("epoch")
    for name, rows in mlflow.items():
        assert repr(sorted(rows_of(stored, name))) == repr(rows), name


def test_every_metric_has_the_axis_of_completed_iterations(stored: OfflineRun) -> None:
    assert stored.axes["*"] == "trainer/step"
    assert [row["_step"] for row in stored.rows] == list(range(len(stored.rows)))


def test_configuration_name_and_status_are_stored(trained: Training, stored: OfflineRun) -> None:
    assert stored.config["SOLVER"]["BASE_LR"] == 0.02
    assert stored.config["effective"]["training_images"] == 16
    assert (stored.id, stored.name) == (trained.said["run_id"], "demo, detectron2")
    assert stored.exit_code == 0
    assert stored.summary["unified_tracker/status"] == "FINISHED"


def test_checkpoints_are_versions_with_their_bytes_aliases_and_metrics(trained: Training, stored: OfflineRun) -> None:
    models = [artifact for artifact in stored.artifacts if artifact.type == "model"]
    assert [model.metadata["step"] for model in models] == [10, 20, 25]
    assert {model.name for model in models} == {f"run-{trained.said['run_id']}-model"}
    for model, name in zip(models, ["model_0000009.pth", "model_0000019.pth", "model_final.pth"], strict=True):
        original = hashlib.sha256((trained.work_dir / name).read_bytes()).hexdigest()
        assert set(model.files) == {name, "config.yaml", "detector.json"}
        assert hashlib.sha256(model.files[name].read_bytes()).hexdigest() == original
        step = model.metadata["step"]
        assert f"iter_{step}" in model.aliases
        assert model.metadata["metrics"]["val/segm/mAP"] == dict(rows_of(stored, "val/segm/mAP"))[step]
    aliases = MlflowRun(trained.uri, trained.said["run_id"]).model_aliases()
    holder = [str(model.metadata["step"]) for model in models if "best-bbox.AP" in model.aliases][-1]
    assert holder == aliases["best-bbox.AP"]


def test_configuration_log_and_results_are_files_of_the_run(trained: Training, stored: OfflineRun) -> None:
    (folder,) = offline_folders(trained.output)
    names = {"coco_instances_results.json", "evaluation-results.json", "log.txt", "metrics.json", "model-config.yaml"}
    assert names <= set(stored.saved)
    assert (folder / "files" / "metrics.json").read_bytes() == (trained.work_dir / "metrics.json").read_bytes()
