"""What MMDetection trainings leave in the run directory about their evaluations, beside MMDetection's own results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.mlflow_reading import MlflowRun
from tests.mmdet.conftest import Training, train
from tests.predictions_reading import recorded
from unified_tracker._rundir import find_runs
from unified_tracker.predictions import choose_images

MASK_RCNN = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
FASTER_RCNN = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
CROWD, EMPTY = 2, 5  # image ids


def own_results(output: Path, split: str, kind: str) -> list[dict[str, Any]]:
    """What `CocoMetric` has written; the segmentations without their size."""
    rows = json.loads((output / f"{split}.{kind}.json").read_text())
    return [{**row, "segmentation": row["segmentation"]["counts"]} if "segmentation" in row else row for row in rows]


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["image_id"], -row["score"], row["bbox"], row.get("segmentation", "")))


def close(ours: list[dict[str, Any]], own: list[dict[str, Any]]) -> bool:
    """Equal to float32: MMDetection subtracts the corners of a box in Python's floats."""
    pairs = list(zip(ordered(ours), ordered(own), strict=True))
    same = all({**a, "bbox": None} == {**b, "bbox": None} for a, b in pairs)
    return same and np.allclose([a["bbox"] for a, _ in pairs], [b["bbox"] for _, b in pairs], rtol=1e-6, atol=1e-4)


@pytest.fixture(scope="module")
def five(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five validation images, an odd number: one with a crowd region, one without annotations."""
    from pycocotools import mask as coco

    folder = tmp_path_factory.mktemp("five")
    shutil.copytree(shapes, folder, dirs_exist_ok=True)
    content = json.loads((folder / "val.json").read_text())
    content["images"] = content["images"][:5]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] not in {EMPTY, 6}]
    bitmap = np.zeros((96, 96), np.uint8, order="F")
    bitmap[10:40, 20:70] = 1
    counts = coco.encode(bitmap)["counts"].decode()
    crowd = {"id": 999, "image_id": CROWD, "category_id": 2, "bbox": [20, 10, 50, 30], "area": 1500, "iscrowd": 1}
    content["annotations"].append({**crowd, "segmentation": {"size": [96, 96], "counts": counts}})
    (folder / "val.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def masks(five: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Stock Mask R-CNN, boxes and masks, training and then a test."""
    output = tmp_path_factory.mktemp("masks")
    steps = ["train", "test"]
    done = train(five, output, config=MASK_RCNN, epochs=2, steps=steps, results=["val", "test"], timeout_s=280)
    assert done.code == 0, done.text
    assert "set aside" not in done.text
    return done


def test_boxes_scores_and_masks_are_those_of_mmdetections_own_results(masks: Training) -> None:
    evaluations = recorded(masks.output)
    assert [(each.sheet.split, each.record.step) for each in evaluations] == [("val", 4), ("val", 8), ("test", 8)]
    for each in evaluations[1:]:
        ours = each.results()
        assert len(ours) > 20
        boxes = [{name: value for name, value in row.items() if name != "segmentation"} for row in ours]
        assert close(boxes, own_results(masks.output, each.sheet.split, "bbox"))
        assert close(ours, own_results(masks.output, each.sheet.split, "segm"))


def test_evaluations_have_metrics_and_aliases(masks: Training) -> None:
    evaluations = recorded(masks.output)
    assert [each.record.aliases[0] for each in evaluations] == ["epoch_1", "epoch_2", "test_epoch_2"]
    assert "best" in evaluations[0].record.aliases
    assert evaluations[2].record.aliases == ("test_epoch_2",)
    run = MlflowRun(masks.uri, masks.said["run_id"])
    for each in evaluations:
        name = f"{each.sheet.split}/segm/mAP"
        assert each.sheet.metrics[name] == dict(run.history(name))[each.record.step]


def test_sample_is_the_data_set_as_it_stands_in_its_file(five: Path, masks: Training) -> None:
    evaluations = recorded(masks.output)
    assert len({each.record.sample.staged for each in evaluations}) == 1
    sample = evaluations[0].sample
    coco = json.loads((five / "val.json").read_text())
    assert (sample.dataset, sample.classes) == (five.name, ["circle", "square", "triangle"])
    assert sample.category_ids == [1, 2, 3]
    assert [(image.id, image.height, image.width) for image in sample.images] == [
        (each, 96, 96) for each in range(1, 6)
    ]
    for image in sample.images:
        annotations = [each for each in coco["annotations"] if each["image_id"] == image.id]
        assert image.truth is not None
        truth = image.truth["instances"]
        assert truth.labels.values().tolist() == [each["category_id"] - 1 for each in annotations]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in annotations)]
        assert truth.boxes is not None
        np.testing.assert_allclose(truth.boxes.values(), np.array(boxes).reshape(-1, 4))
        segmentations = [each["segmentation"] for each in annotations]
        assert (truth.masks or []) == [
            each["counts"].encode() if isinstance(each, dict) else each for each in segmentations
        ]
        crowd = truth.crowd.values().tolist() if truth.crowd else [False] * len(annotations)
        assert crowd == [bool(each["iscrowd"]) for each in annotations]


def test_two_processes_have_no_image_twice_and_none_left_behind(five: Path, tmp_path: Path) -> None:
    """The sampler pads five images to six."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    done = train(five, tmp_path, launcher=launcher, config=FASTER_RCNN, epochs=1, results=["val"], timeout_s=280)
    assert done.code == 0, done.text
    (evaluation,) = recorded(tmp_path)
    assert sorted(evaluation.objects) == [1, 2, 3, 4, 5]
    assert close(evaluation.results(), own_results(tmp_path, "val", "bbox"))
    (run,) = find_runs(tmp_path)
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]


def test_a_sample_is_smaller_always_the_same_and_changes_no_training(shapes: Path, tmp_path: Path) -> None:
    """The same training without predictions ends with the same weights and random states."""
    some = train(shapes, tmp_path / "some", epochs=2, hook={"num_eval_images": 2, "bbox_score_thr": 0.05})
    none = train(shapes, tmp_path / "none", epochs=2, hook={"num_eval_images": 0})
    assert recorded(tmp_path / "none") == []
    evaluations = recorded(tmp_path / "some")
    chosen = choose_images(range(1, 7), 2)
    assert [sorted(each.objects) for each in evaluations] == [chosen, chosen]
    assert [image.id for image in evaluations[0].sample.images] == chosen
    assert evaluations[0].sheet.score_threshold == 0.05
    assert some.said["random"] == none.said["random"]


def test_without_validation_there_are_no_predictions(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, epochs=1, no_validation=True)
    assert done.code == 0, done.text
    assert recorded(tmp_path) == []
    assert "failed" not in done.text


def test_test_without_training_has_predictions(shapes: Path, tmp_path: Path) -> None:
    done = train(shapes, tmp_path, steps=["test"], results=["test"])
    assert done.code == 0, done.text
    (evaluation,) = recorded(tmp_path)
    assert (evaluation.sheet.split, evaluation.record.step, evaluation.record.aliases) == ("test", 0, ("test_iter_0",))
    assert close(evaluation.results(), own_results(tmp_path, "test", "bbox"))
    assert evaluation.objects[1].masks is None
