"""What Detectron2 trainings leave in the run directory about their evaluations, beside Detectron2's own results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.detectron2.conftest import Training, train
from tests.mlflow_reading import MlflowRun
from tests.predictions_reading import Recorded, recorded
from unified_tracker._rundir import find_runs
from unified_tracker.predictions import choose_images


def own_results(folder: Path) -> list[dict[str, Any]]:
    """`coco_instances_results.json`, the segmentations without their size."""
    rows = json.loads((folder / "coco_instances_results.json").read_text())
    return [{**row, "segmentation": row["segmentation"]["counts"]} for row in rows]


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["image_id"], -row["score"], row["bbox"]))


@pytest.fixture(scope="module")
def evaluations(trained: Training) -> list[Recorded]:
    assert trained.code == 0, trained.text
    assert "set aside" not in trained.text
    return recorded(trained.output)


def test_boxes_scores_and_masks_are_those_of_detectron2s_own_results(
    trained: Training, evaluations: list[Recorded]
) -> None:
    rows = own_results(trained.work_dir)
    assert len(rows) > 20
    assert ordered(evaluations[-1].results()) == ordered(rows)


def test_every_evaluation_is_recorded_with_its_metrics(trained: Training, evaluations: list[Recorded]) -> None:
    assert [each.record.step for each in evaluations] == [10, 20, 25]
    assert [each.record.aliases[0] for each in evaluations] == ["iter_10", "iter_20", "iter_25"]
    assert [each.sheet.split for each in evaluations] == ["val"] * 3
    run = MlflowRun(trained.uri, trained.said["run_id"])
    for each in evaluations:
        assert each.sheet.metrics["val/segm/mAP"] == dict(run.history("val/segm/mAP"))[each.record.step]
    best = max(evaluations, key=lambda each: each.sheet.metrics["val/bbox/mAP"])
    assert [each.record.step for each in evaluations if "best" in each.record.aliases][-1] == best.record.step


def test_sample_is_the_data_set_as_it_stands_in_its_file(shapes: Path, evaluations: list[Recorded]) -> None:
    assert len({each.record.sample.staged for each in evaluations}) == 1
    sample = evaluations[0].sample
    coco = json.loads((shapes / "val.json").read_text())
    assert (sample.dataset, sample.classes, sample.category_ids) == (
        "shapes_val",
        ["circle", "square", "triangle"],
        [1, 2, 3],
    )
    assert [image.id for image in sample.images] == [image["id"] for image in coco["images"]]
    for image, listed in zip(sample.images, coco["images"], strict=True):
        assert Path(image.file) == shapes / "val" / listed["file_name"]
        annotations = [each for each in coco["annotations"] if each["image_id"] == image.id]
        assert image.truth is not None
        truth = image.truth["instances"]
        assert truth.labels.values().tolist() == [each["category_id"] - 1 for each in annotations]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in annotations)]
        assert truth.boxes is not None
        np.testing.assert_allclose(truth.boxes.values(), boxes)
        assert truth.masks == [each["segmentation"] for each in annotations]


def test_two_processes_have_no_image_twice_and_none_left_behind(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, processes=2, iterations=6, opts=["TEST.EVAL_PERIOD", 3])
    assert done.code == 0, done.text
    evaluations = recorded(tmp_path)
    assert [each.record.step for each in evaluations] == [3, 6]
    assert all(sorted(each.objects) == [1, 2, 3, 4, 5, 6] for each in evaluations)
    assert ordered(evaluations[-1].results()) == ordered(own_results(done.work_dir))
    (run,) = find_runs(tmp_path)
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]


def test_a_sample_is_smaller_always_the_same_and_changes_no_training(shapes: Path, tmp_path: Path) -> None:
    """The same training without predictions ends with the same weights and random states."""
    opts = ["TEST.EVAL_PERIOD", 2]
    some = train(shapes, tmp_path / "some", iterations=4, opts=[*opts, "TRACKER.NUM_EVAL_IMAGES", 2])
    none = train(shapes, tmp_path / "none", iterations=4, opts=[*opts, "TRACKER.NUM_EVAL_IMAGES", 0])
    assert recorded(tmp_path / "none") == []
    evaluations = recorded(tmp_path / "some")
    assert [sorted(each.objects) for each in evaluations] == [choose_images(range(1, 7), 2)] * 2
    assert [image.id for image in evaluations[0].sample.images] == choose_images(range(1, 7), 2)
    assert some.said["random"] == none.said["random"]


def test_evaluation_without_training_is_a_run_of_its_own(trained: Training, shapes: Path, tmp_path: Path) -> None:
    weights = str(trained.work_dir / "model_0000019.pth")
    opts = ["MODEL.WEIGHTS", weights, "TRACKER.SCORE_THRESH", 0.05]
    done = train(shapes, tmp_path, eval_only=True, opts=opts)
    assert done.code == 0, done.text
    (evaluation,) = recorded(tmp_path)
    assert (evaluation.record.step, evaluation.record.aliases) == (20, ("test_iter_20",))
    assert (evaluation.sheet.split, evaluation.sheet.score_threshold) == ("test", 0.05)
    assert ordered(evaluation.results()) == ordered(own_results(done.work_dir))
    run = MlflowRun(done.uri, done.said["run_id"])
    assert run.status == "FINISHED"
    assert run.params["effective.checkpoint"] == weights
    assert run.history("test/bbox/mAP") == [(20, evaluation.sheet.metrics["test/bbox/mAP"])]
    assert run.history("test/bbox/AP") == [(20, pytest.approx(100 * evaluation.sheet.metrics["test/bbox/mAP"]))]


def test_evaluation_that_fails_is_a_failed_run(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, eval_only="fail")
    assert done.code != 0
    assert "RuntimeError: the test went to the moon" in done.text
    (directory,) = find_runs(tmp_path)
    assert MlflowRun(done.uri, directory.path.name).status == "FAILED"


def test_test_after_training_goes_into_the_same_run(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, after="test", iterations=3, opts=["TEST.EVAL_PERIOD", 0])
    assert done.code == 0, done.text
    evaluations = recorded(tmp_path)  # which demands that there is one run only
    assert [(each.sheet.split, each.record.step) for each in evaluations] == [("val", 3), ("test", 3)]
    assert evaluations[0].results() == evaluations[1].results()
    assert MlflowRun(done.uri, done.said["run_id"]).status == "FINISHED"


def test_lazy_configuration_names_the_data_set(shapes: Path, tmp_path: Path) -> None:
    config = {"dataloader": {"test": {"dataset": {"names": "shapes_val"}}}}
    hook = {"tracker": "mlflow", "config": config, "output_dir": str(tmp_path)}
    done = train(shapes, tmp_path, plain=True, evaluate=True, iterations=4, hook=hook)
    assert done.code == 0, done.text
    evaluations = recorded(tmp_path)
    assert [each.record.step for each in evaluations] == [2, 4]
    assert ordered(evaluations[-1].results()) == ordered(own_results(done.work_dir))
    assert evaluations[0].sample.classes == ["circle", "square", "triangle"]


def test_predictions_without_a_named_data_set_have_no_ground_truth(shapes: Path, tmp_path: Path) -> None:
    hook = {"tracker": "mlflow", "output_dir": str(tmp_path), "num_eval_images": 4}
    done = train(shapes, tmp_path, plain=True, evaluate=True, iterations=4, hook=hook)
    assert done.code == 0, done.text
    chosen = choose_images(range(1, 7), 4)
    evaluations = recorded(tmp_path)
    assert [sorted(each.objects) for each in evaluations] == [chosen, chosen]
    sample = evaluations[-1].sample
    assert [(image.id, image.truth) for image in sample.images] == [(image_id, None) for image_id in chosen]
    assert [Path(image.file).parent for image in sample.images] == [shapes / "val"] * 4
    assert sample.classes == ["0", "1", "2"]
    own = [row for row in own_results(done.work_dir) if row["image_id"] in chosen]
    assert ordered(evaluations[-1].results()) == ordered(own)
