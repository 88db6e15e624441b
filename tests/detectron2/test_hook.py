"""What a Detectron2 training leaves in MLflow, read back through MLflow's client."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from tests.detectron2.conftest import ITERATIONS, Training, train
from tests.mlflow_reading import MlflowRun
from unified_tracker._rundir import find_runs


@pytest.fixture(scope="module")
def stored(trained: Training) -> MlflowRun:
    assert trained.code == 0, trained.text
    return MlflowRun(trained.uri, trained.said["run_id"])


def own_log(work_dir: Path) -> list[tuple[str, int, float]]:
    """Name, completed iterations and value of every number in Detectron2's own `metrics.json`."""
    rows = []
    for line in (work_dir / "metrics.json").read_text().splitlines():
        values = json.loads(line)
        step = min(values.pop("iteration") + 1, ITERATIONS)
        rows += [(name, step, value) for name, value in values.items()]
    return rows


def holds(rows: list[tuple[int, float]], step: int, value: float) -> bool:
    """True if a value stands at a step; a NaN is equal to a NaN."""
    return any(at == step and (v == value or (math.isnan(v) and math.isnan(value))) for at, v in rows)


def test_every_number_of_detectron2s_own_log_is_stored(trained: Training, stored: MlflowRun) -> None:
    rows = own_log(trained.work_dir)
    metrics = stored.metrics()
    missing = [row for row in rows if not holds(metrics.get(row[0], []), *row[1:])]
    assert len(rows) > 60
    assert missing == []


def test_no_value_is_stored_twice_and_no_stale_one(stored: MlflowRun) -> None:
    metrics = stored.metrics()
    metrics.pop("epoch")  # stands in the training's and in the evaluation's row of a step
    assert {name: rows for name, rows in metrics.items() if len({step for step, _ in rows}) != len(rows)} == {}
    assert [step for step, _ in metrics["bbox/AP"]] == [10, 20, 25]


def test_canonical_metrics_stand_beside_in_unit_range(stored: MlflowRun) -> None:
    metrics = stored.metrics()
    for task in ("bbox", "segm"):
        assert metrics[f"val/{task}/mAP"] == [(step, value / 100) for step, value in metrics[f"{task}/AP"]]
    assert metrics["train/loss"] == metrics["total_loss"]
    assert metrics["train/lr"] == metrics["lr"]
    assert metrics["perf/iter_time_s"] == metrics["time"]
    assert all(0 <= v <= 1 for name, rows in metrics.items() if name.startswith("val/") for _, v in rows)
    assert not any(math.isnan(v) for name, rows in metrics.items() if name.startswith("val/") for _, v in rows)


def test_epoch_stands_beside_the_steps(stored: MlflowRun) -> None:
    assert (20, 20 * 2 / 16) in stored.history("epoch")


def test_whole_configuration_is_stored(stored: MlflowRun) -> None:
    params = stored.params
    assert params["SOLVER.BASE_LR"] == "0.02"
    assert params["MODEL.ROI_HEADS.NUM_CLASSES"] == "3"
    assert params["effective.world_size"] == "1"
    assert params["effective.seed"] == "7"
    assert float(params["effective.lr"]) == 0.02
    assert params["effective.training_images"] == "16"
    assert params["env.packages.torch"].startswith("2.")
    assert "train.py" in params["env.command"]


def test_configuration_log_and_results_are_artifacts_and_nothing_else_is(trained: Training, stored: MlflowRun) -> None:
    files = stored.files()
    top = {name for name in files if "/" not in name}
    assert top == {
        "coco_instances_results.json",
        "evaluation-results.json",
        "log.txt",
        "metrics.json",
        "model-config.yaml",
        "params.json",
    }
    assert files["metrics.json"] == (trained.work_dir / "metrics.json").read_bytes()
    evaluations = json.loads(files["evaluation-results.json"])
    assert [each["step"] for each in evaluations] == [10, 20, 25]
    assert evaluations[-1]["metrics"]["segm/AP"] == stored.history("segm/AP")[-1][1]


def test_per_class_ap_is_a_table(stored: MlflowRun) -> None:
    table = json.loads(stored.files("tables")["tables/val/bbox/per_class/step_000000025.json"])
    assert table["columns"] == ["category", "AP"]
    assert {row[0]: row[1] for row in table["data"]} == {
        name: stored.history(f"bbox/AP-{name}")[-1][1] / 100 for name in ("circle", "square", "triangle")
    }


def test_each_checkpoint_arrives_with_its_bytes_and_metrics(trained: Training, stored: MlflowRun) -> None:
    models = stored.models()
    assert [model.params["step"] for model in models] == ["10", "20", "25"]
    files = ["model_0000009.pth", "model_0000019.pth", "model_final.pth"]
    for model, name in zip(models, files, strict=True):
        expected = hashlib.sha256((trained.work_dir / name).read_bytes()).hexdigest()
        assert stored.model_weights(model) == {name: expected}
        assert str(model.status) == "READY"
        bound = {metric.key: metric.value for metric in model.metrics}
        assert bound["val/segm/mAP"] == dict(stored.history("val/segm/mAP"))[int(model.params["step"])]


def test_aliases_point_to_the_checkpoints_they_name(stored: MlflowRun) -> None:
    aliases = stored.model_aliases()
    best = max(reversed(stored.history("bbox/AP")), key=lambda row: row[1])
    first_best = min(step for step, value in stored.history("bbox/AP") if value == best[1])
    assert aliases["latest"] == "25"
    assert {aliases[f"iter_{step}"] for step in (10, 20, 25)} == {"10", "20", "25"}
    assert aliases["best"] == aliases["best-bbox.AP"] == aliases["best-bbox.mAP"] == str(first_best)


def test_run_is_finished_named_and_complete(stored: MlflowRun) -> None:
    assert stored.status == "FINISHED"
    assert stored.run.info.run_name == "demo, detectron2"
    assert stored.tags["unified_tracker.delivery"] == "complete"


def test_training_process_loads_no_sdk_and_starts_no_thread(trained: Training) -> None:
    assert trained.said["sdks"] == []
    assert trained.said["threads"] == ["MainThread"]


def test_address_is_printed(trained: Training, stored: MlflowRun) -> None:
    assert f"mlflow: run {stored.id} at {trained.uri}" in trained.text


@pytest.mark.parametrize(
    ("kind", "status"), [("raise", "FAILED"), ("interrupt", "KILLED"), ("terminate", "KILLED"), ("kill", "KILLED")]
)
def test_status_tells_how_the_training_ended(shapes: Path, tmp_path: Path, kind: str, status: str) -> None:
    done = train(shapes, tmp_path, trouble=[kind, 12], opts=["TRACKER.INTERVAL", 5])
    assert done.code != 0
    directory = next(find_runs(tmp_path))
    wait_until_delivered(directory.path)
    run = MlflowRun(done.uri, directory.path.name)
    assert run.status == status
    assert [step for step, _ in run.history("total_loss")][:2] == [5, 10]
    assert run.model_aliases()["iter_10"] == "10"


def test_resume_goes_on_as_the_same_run(shapes: Path, tmp_path: Path) -> None:
    first = train(shapes, tmp_path, trouble=["raise", 15], opts=["TRACKER.INTERVAL", 5])
    run_id = next(find_runs(tmp_path)).path.name
    second = train(shapes, tmp_path, resume=True, opts=["TRACKER.INTERVAL", 5, "SOLVER.STEPS", "(3,)"])
    assert first.code != 0
    assert second.code == 0, second.text
    assert second.said["run_id"] == run_id
    run = MlflowRun(second.uri, run_id)
    assert run.status == "FINISHED"
    assert [step for step, _ in run.history("total_loss")] == [5, 10, 15, 15, 20, 25]
    changed = {tag: value for tag, value in run.tags.items() if tag.startswith("unified_tracker.param_changed.")}
    assert any("SOLVER.STEPS" in tag and value == "[3]" for tag, value in changed.items())


def test_resume_is_recognised_when_the_hook_is_registered_late(shapes: Path, tmp_path: Path) -> None:
    train(shapes, tmp_path, trouble=["raise", 11])
    run_id = next(find_runs(tmp_path)).path.name
    second = train(shapes, tmp_path, resume=True, register="late", iterations=12)
    assert second.said["run_id"] == run_id


def test_plain_loop_needs_no_configuration(shapes: Path, tmp_path: Path) -> None:
    hook = {"tracker": "mlflow", "project": "plain", "interval": 2, "config": {"lr": 0.5}, "output_dir": str(tmp_path)}
    done = train(shapes, tmp_path, plain=True, iterations=4, hook=hook)
    assert done.code == 0, done.text
    run = MlflowRun(done.uri, done.said["run_id"])
    assert run.params["lr"] == "0.5"
    assert [step for step, _ in run.history("train/loss")] == [2, 4]
    assert run.status == "FINISHED"


def test_blog_keys_are_honoured(shapes: Path, tmp_path: Path) -> None:
    blog = {
        "EXPERIMENT_NAME": "balloon",
        "RUN_NAME": "#0 first training",
        "RUN_DESCRIPTION": "as in the blog",
        "TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    done = train(shapes, tmp_path, blog=blog, iterations=3, opts=[])
    assert done.code == 0, done.text
    run = MlflowRun(done.uri, done.said["run_id"])
    assert run.run.info.run_name == "#0 first training"
    assert run.tags["mlflow.note.content"] == "as in the blog"
    assert run.client.get_experiment(run.run.info.experiment_id).name == "balloon"


def test_run_kept_open_takes_a_test_set_evaluation(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, after=True, iterations=3, opts=["TRACKER.KEEP_RUN_OPEN", True])
    assert done.code == 0, done.text
    assert MlflowRun(done.uri, done.said["run_id"]).history("test/bbox/mAP") == [(3, 0.25)]


def test_two_processes_are_one_run(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, processes=2, iterations=6, opts=["TEST.EVAL_PERIOD", 3, "TRACKER.INTERVAL", 2])
    assert done.code == 0, done.text
    directories = list(find_runs(tmp_path))
    assert len(directories) == 1
    run = MlflowRun(done.uri, directories[0].path.name)
    assert run.params["effective.world_size"] == "2"
    assert [step for step, _ in run.history("val/bbox/mAP")] == [3, 6]
    assert run.status == "FINISHED"


def test_off_leaves_no_trace(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, iterations=3, yaml="TRACKER: {BACKEND: off}")
    assert done.code == 0, done.text
    assert not done.said["active"]
    assert list(find_runs(tmp_path)) == []
    assert not (tmp_path / "mlflow.db").exists()


def test_unknown_backend_ends_before_training(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, iterations=3, trackers=["mlfow"])
    assert done.code != 0
    assert "no tracker backend named 'mlfow' (installed: mlflow, wandb" in done.text
    assert not (tmp_path / "detectron2" / "model_final.pth").exists()


def wait_until_delivered(run_dir: Path) -> None:
    """Deliver in the foreground what the killed training has left."""
    import subprocess
    import sys

    for _ in range(60):
        code = subprocess.run(
            [sys.executable, "-m", "unified_tracker._uploader", str(run_dir)], timeout=120, check=False
        )
        if code.returncode == 0:
            return
    raise AssertionError(f"{run_dir} was not delivered")
