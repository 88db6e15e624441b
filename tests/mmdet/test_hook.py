"""What an MMDetection training leaves in MLflow and W&B, read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.backends.wandb_files import OfflineRun, offline_folders, read_run
from tests.mlflow_reading import MlflowRun
from tests.mmdet.conftest import EPOCHS, ITERATIONS, SCORES, Training, deliver, train
from unified_tracker._rundir import find_runs

STEPS = [ITERATIONS * epoch for epoch in range(1, EPOCHS + 1)]
AXES = {"epoch", "iter", "step"}


@pytest.fixture(scope="module")
def stored(trained: Training) -> MlflowRun:
    assert trained.code == 0, trained.text
    return MlflowRun(trained.uri, trained.said["run_id"])


@pytest.fixture(scope="module")
def offline(trained: Training, stored: MlflowRun) -> OfflineRun:
    (folder,) = offline_folders(trained.output)
    return read_run(folder)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_number_of_mmengines_own_log_is_stored(trained: Training, stored: MlflowRun) -> None:
    metrics = stored.metrics()
    rows = trained.log()
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    for name in set().union(*rows) - AXES:
        assert metrics[name] == [(row["step"], row[name]) for row in rows], name
    assert {"loss", "loss_cls", "loss_epoch", "lr", "time", "data_time", "grad_norm"} <= set(metrics)


def test_every_number_of_mmengines_evaluations_is_stored(trained: Training, stored: MlflowRun) -> None:
    metrics = stored.metrics()
    rows = trained.log(training=False)
    assert len(rows) == EPOCHS
    for name in set().union(*rows) - AXES:
        ours = (
            f"val/{name}" if name in {"time", "data_time"} else name
        )  # these two are the training's own names as well
        assert metrics[ours] == [(step, row[name]) for step, row in zip(STEPS, rows, strict=True)], name


def test_same_numbers_are_in_wandb(trained: Training, offline: OfflineRun) -> None:
    rows = trained.log()
    for name in set().union(*rows) - AXES:
        assert offline.column(name) == [row[name] for row in rows], name


def test_no_row_is_stored_twice(stored: MlflowRun) -> None:
    metrics = stored.metrics()
    metrics.pop("epoch")  # stands in the training's and in the evaluation's row of a step
    assert {name: rows for name, rows in metrics.items() if len({step for step, _ in rows}) != len(rows)} == {}


def test_canonical_metrics_stand_beside(stored: MlflowRun) -> None:
    metrics = stored.metrics()
    pairs = {
        "train/loss": "loss",
        "train/loss_cls": "loss_cls",
        "train/loss_bbox": "loss_bbox",
        "train/lr": "lr",
        "train/grad_norm": "grad_norm",
        "perf/iter_time_s": "time",
        "perf/data_time_s": "data_time",
        "val/bbox/mAP": "coco/bbox_mAP",
    }
    for canonical, own in pairs.items():
        assert metrics[canonical] == metrics[own]
    assert metrics["perf/images_per_s"] == [(step, pytest.approx(4 / value)) for step, value in metrics["time"]]


def test_not_applicable_is_no_canonical_value(stored: MlflowRun) -> None:
    metrics = stored.metrics()
    assert [value for _, value in metrics["coco/bbox_mAP_l"]] == [-1.0] * EPOCHS
    assert "val/bbox/mAP_large" not in metrics
    assert all(0 <= v <= 1 for name, rows in metrics.items() if name.startswith("val/") for _, v in rows)


def test_results_that_are_no_scalars_do_no_harm(stored: MlflowRun) -> None:
    assert stored.history("odd/score") == list(zip(STEPS, SCORES, strict=True))
    assert stored.history("odd/images") == [(step, 6) for step in STEPS]
    assert not {"odd/curve", "odd/text"} & set(stored.metrics())


def test_epoch_stands_beside_the_steps(stored: MlflowRun) -> None:
    assert set(stored.history("epoch")) == {(step, step / ITERATIONS) for step in range(2, 21, 2)}


def test_per_class_ap_is_a_table(stored: MlflowRun) -> None:
    table = json.loads(stored.files("tables")["tables/val/bbox/per_class/step_000000020.json"])
    assert table["columns"] == ["category", "AP"]
    assert dict(table["data"]) == {
        name: dict(stored.history(f"coco/{name}_precision"))[20] for name in ("circle", "square", "triangle")
    }


def test_rotated_and_rewritten_checkpoints_arrive_as_they_were(trained: Training, stored: MlflowRun) -> None:
    assert len(list(trained.work_dir.glob("epoch_*.pth"))) == 1
    models = stored.models()
    assert [int(model.params["step"]) for model in models] == STEPS
    for epoch, model in enumerate(models, start=1):
        name = f"epoch_{epoch}.pth"
        assert stored.model_weights(model) == {name: sha(trained.output / "kept" / name)}
        assert str(model.status) == "READY"
        bound = {metric.key: metric.value for metric in model.metrics}
        assert bound["odd/score"] == SCORES[epoch - 1]


def test_aliases_point_to_the_checkpoints_they_name(stored: MlflowRun) -> None:
    aliases = stored.model_aliases()
    assert {name: int(step) for name, step in aliases.items() if "epoch_" in name} == {
        f"epoch_{epoch}": step for epoch, step in enumerate(STEPS, start=1)
    }
    assert aliases["latest"] == str(STEPS[-1])
    assert aliases["best"] == aliases["best-odd.score"] == str(STEPS[3])


def test_same_checkpoints_are_in_wandb(trained: Training, offline: OfflineRun) -> None:
    models = [artifact for artifact in offline.artifacts if artifact.type == "model"]
    assert [model.name for model in models] == [f"run-{trained.said['run_id']}-model"] * EPOCHS
    for epoch, model in enumerate(models, start=1):
        weights = [path for name, path in model.files.items() if name.endswith(".pth")]
        assert [sha(path) for path in weights] == [sha(trained.output / "kept" / f"epoch_{epoch}.pth")]
        assert {"config.py", "detector.json"} < set(model.files)
    assert "best" in models[3].aliases and "best" not in models[4].aliases


def test_whole_configuration_is_stored(stored: MlflowRun) -> None:
    params = stored.params
    assert params["model.backbone.widen_factor"] == "0.125"
    assert params["effective.world_size"] == "1"
    assert params["effective.seed"] == "7"
    assert float(params["effective.lr"]) == 0.004  # the schedule has begun with a thousandth of it
    assert params["effective.max_iters"] == "20"
    assert params["effective.images_per_iteration"] == "4"
    assert params["env.packages.mmdet"].startswith("3.")


def test_configuration_log_and_scalars_of_this_run_are_artifacts(trained: Training, stored: MlflowRun) -> None:
    files = stored.files()
    stamp = Path(trained.said["log_dir"]).name
    assert {name for name in files if "/" not in name} == {
        f"{stamp}.json",  # results of `runner.test()`
        f"{stamp}.log",
        "evaluation-results.json",
        "params.json",
        "rtmdet_tiny_8xb32-300e_coco.py",
        "scalars.json",
    }
    assert files["scalars.json"] == (Path(trained.said["log_dir"]) / "vis_data" / "scalars.json").read_bytes()
    assert [each["step"] for each in json.loads(files["evaluation-results.json"])] == STEPS


def test_test_after_training_goes_into_the_same_run(trained: Training, stored: MlflowRun) -> None:
    assert [directory.path.name for directory in find_runs(trained.output)] == [trained.said["run_id"]]
    assert stored.history("test/bbox/mAP") == stored.history("test/coco/bbox_mAP")
    assert [step for step, _ in stored.history("test/bbox/mAP")] == [STEPS[-1]]
    assert "tables/test/bbox/per_class/step_000000020.json" in stored.files("tables")


def test_run_is_finished_named_and_complete(stored: MlflowRun, offline: OfflineRun) -> None:
    assert stored.status == "FINISHED"
    assert stored.run.info.run_name == offline.name == "first"
    assert stored.client.get_experiment(stored.run.info.experiment_id).name == offline.project == "shapes"
    assert stored.tags["unified_tracker.delivery"] == "complete"
    assert offline.exit_code == 0


def test_training_process_loads_no_sdk_and_starts_no_thread(trained: Training) -> None:
    assert trained.said["sdks"] == []
    assert trained.said["threads"] == ["MainThread"]


@pytest.mark.parametrize(
    ("kind", "status"), [("raise", "FAILED"), ("interrupt", "KILLED"), ("terminate", "KILLED"), ("kill", "KILLED")]
)
def test_status_tells_how_the_training_ended(ended_early: dict[str, Training], kind: str, status: str) -> None:
    training = ended_early[kind]
    assert training.code != 0
    deliver(training)
    run = MlflowRun(training.uri, training.run_id)
    assert run.status == status
    assert [step for step, _ in run.history("loss")] == [2, 4]  # the trouble comes before the row of the sixth
    assert run.model_aliases()["epoch_1"] == "4"


def test_resume_goes_on_as_the_same_run(ended_early: dict[str, Training], shapes: Path) -> None:
    first = ended_early["raise"]
    second = train(shapes, first.output, epochs=3, set={"default_hooks.checkpoint.interval": 1, "resume": True})
    assert second.code == 0, second.text
    assert second.said["run_id"] == first.run_id  # which demands that there is one run only
    run = MlflowRun(second.uri, second.said["run_id"])
    assert run.status == "FINISHED"
    assert [step for step, _ in run.history("loss")] == [2, 4, 6, 8, 10, 12]
    assert run.params["effective.start_iter"] == "0"
    assert any("param_changed.effective.start_iter" in tag for tag in run.tags)
    assert {"epoch_1": "4", "epoch_2": "8", "epoch_3": "12"}.items() <= run.model_aliases().items()


def test_fine_tuning_is_another_run_and_needs_neither_checkpoints_nor_backends(
    trained: Training, shapes: Path, tmp_path: Path
) -> None:
    """`keep_run_open` besides: the test goes into the open run."""
    weights = str(trained.output / "kept" / "epoch_4.pth")
    done = train(
        shapes,
        tmp_path,
        epochs=1,
        steps=["train", "test"],
        drop_hooks=["checkpoint"],
        hook={"keep_run_open": True, "interval": 3, "framework_names": False},
        set={"load_from": weights, "vis_backends": [], "visualizer.vis_backends": []},
    )
    assert done.code == 0, done.text
    assert done.said["run_id"] != trained.said["run_id"]
    assert done.text.count("log_checkpoint=True needs a CheckpointHook") == 1
    run = MlflowRun(done.uri, done.said["run_id"])
    assert run.status == "FINISHED"
    assert [step for step, _ in run.history("train/loss")] == [3, 4]
    assert [step for step, _ in run.history("test/bbox/mAP")] == [4]
    assert not {"loss", "coco/bbox_mAP"} & set(run.metrics())
    assert run.models() == []


def test_test_without_training_is_a_finished_run(trained: Training, shapes: Path, tmp_path: Path) -> None:
    weights = str(trained.output / "kept" / "epoch_4.pth")
    done = train(shapes, tmp_path, steps=["test"], set={"load_from": weights})
    assert done.code == 0, done.text
    run = MlflowRun(done.uri, done.said["run_id"])
    assert run.status == "FINISHED"
    assert [step for step, _ in run.history("test/bbox/mAP")] == [16]
    assert set(run.history("epoch")) == {(16, 4)}
    assert run.params["effective.checkpoint"] == weights
    assert not any(name.startswith("val/") for name in run.metrics())


def test_iteration_based_training(shapes: Path, tmp_path: Path) -> None:
    """A stock configuration; checkpoints by iteration in another folder; MMEngine's log is less dense than ours."""
    done = train(
        shapes,
        tmp_path,
        config="retinanet/retinanet_r50_fpn_90k_coco.py",
        more_hooks=[{"type": "Keeper"}],
        hook={"interval": 1},
        set={
            "train_cfg": {"max_iters": 7, "val_interval": 4},
            "default_hooks.logger.interval": 3,
            "default_hooks.checkpoint": {"interval": 2, "max_keep_ckpts": 1, "out_dir": str(tmp_path / "elsewhere")},
        },
    )
    assert done.code == 0, done.text
    run = MlflowRun(done.uri, done.said["run_id"])
    metrics = run.metrics()
    assert [step for step, _ in metrics["loss"]] == [1, 2, 3, 4, 5, 6, 7]
    rows = done.log()
    assert [row["step"] for row in rows] == [3, 6]
    for row in rows:
        assert {name: dict(metrics[name])[row["step"]] for name in set(row) - AXES} == {
            name: row[name] for name in set(row) - AXES
        }
    assert (6, 6 * 4 / 16) in metrics["epoch"]
    assert [step for step, _ in metrics["val/bbox/mAP"]] == [4, 7]
    assert {f"iter_{step}": str(step) for step in (2, 4, 6, 7)}.items() <= run.model_aliases().items()
    for model in run.models():
        name = f"iter_{model.params['step']}.pth"
        assert run.model_weights(model) == {name: sha(tmp_path / "kept" / name)}


def test_configuration_of_mmdetection_2_needs_only_to_move(shapes: Path, tmp_path: Path) -> None:
    """`MMDetWandbHook` with every argument that it and its base class had; stock Mask R-CNN."""
    hook = {
        "type": "MMDetWandbHook",
        "tracker": "wandb",
        "init_kwargs": {
            "project": "old",
            "entity": "team",
            "name": "old name",
            "tags": ["baseline"],
            "group": "g",
            "job_type": "train",
            "notes": "as before",
            "config": {"extra": 5},
            "resume": "allow",
            "mode": "offline",
            "magic": True,
        },
        "interval": 2,
        "log_checkpoint": True,
        "log_checkpoint_metadata": True,
        "num_eval_images": 10,
        "bbox_score_thr": 0.3,
        "ignore_last": True,
        "reset_flag": False,
        "commit": True,
        "by_epoch": True,
        "with_step": True,
        "log_artifact": True,
        "out_suffix": [".log.json", ".log", ".py"],
        "define_metric_cfg": {"loss": "min"},
    }
    moved = {"custom_imports": {"imports": ["unified_tracker_mmdet"]}, "default_hooks.checkpoint.interval": 1}
    done = train(shapes, tmp_path, config="mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", epochs=1, hook=hook, set=moved)
    assert done.code == 0, done.text
    assert done.text.count("no meaning here, ignored: magic") == 1
    (folder,) = offline_folders(tmp_path)
    run = read_run(folder)
    assert (run.project, run.name, run.notes, run.group, run.tags) == (
        "old",
        "old name",
        "as before",
        "g",
        ["baseline"],
    )
    assert run.config["extra"] == 5
    assert run.column("loss") == [row["loss"] for row in done.log()]
    assert all(0 <= value <= 1 for task in ("bbox", "segm") for value in run.column(f"val/{task}/mAP"))
    assert len(run.column("val/segm/mAP")) == 1
    assert [artifact.files.keys() for artifact in run.artifacts if artifact.type == "model"] == [
        {"epoch_1.pth", "config.py", "detector.json"}
    ]
    assert run.exit_code == 0


def test_two_processes_are_one_run(shapes: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    done = train(
        shapes,
        tmp_path,
        launcher=launcher,
        config="faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        epochs=2,
        set={"default_hooks.checkpoint.interval": 1},
    )
    assert done.code == 0, done.text
    assert len(list(find_runs(tmp_path))) == 1
    run = MlflowRun(done.uri, done.said["run_id"])
    assert run.status == "FINISHED"
    assert run.params["effective.world_size"] == "2"
    assert run.params["effective.images_per_iteration"] == "8"
    assert [step for step, _ in run.history("loss")] == [2, 4]
    assert [step for step, _ in run.history("val/bbox/mAP")] == [2, 4]
    assert {"epoch_1", "epoch_2"} <= set(run.model_aliases())


def test_off_leaves_no_trace(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, epochs=1, hook={"tracker": "off"})
    assert done.code == 0, done.text
    assert not done.said["recording"]
    assert done.said["state"] is None
    assert list(find_runs(tmp_path)) == []
    assert not (tmp_path / "mlflow.db").exists()
    assert "unified-tracker" not in done.text.replace("unified-tracker_", "")
