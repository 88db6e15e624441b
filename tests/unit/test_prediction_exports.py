"""Predictions in COCO's result format: what the framework said, to the last bit."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO

from tests.predicting import HEIGHT, WIDTH, ellipse, prediction_sheet, random_detections, sample_sheet
from unified_tracker.predictions import Detections
from unified_tracker.predictions._coco_results import coco_results, coco_results_json


def test_scores_and_corners_are_the_frameworks_float32_exactly() -> None:
    _, predicted = random_detections(3, images=2, objects=40, classes=3)
    results = coco_results(sample_sheet(dict.fromkeys(predicted)), prediction_sheet(predicted))
    expected = [
        (image_id, int(label) + 1, float(score), *map(float, box[:2]))
        for image_id, each in predicted.items()
        for label, score, box in zip(each.labels, each.scores, each.boxes, strict=True)
    ]
    assert [(r["image_id"], r["category_id"], r["score"], *r["bbox"][:2]) for r in results] == expected
    # Width and height: MMDetection's to the last bit, Detectron2's once they are rounded as it rounds them.
    boxes = np.concatenate([each.boxes for each in predicted.values()])
    assert [r["bbox"][2:] for r in results] == [[x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]
    assert (np.float32([r["bbox"][2:] for r in results]) == boxes[:, 2:] - boxes[:, :2]).all()


def test_float64_boxes_lose_nothing_either() -> None:
    box = [0.1, 1 / 3, 50.123456789012345, 60.7]
    (result,) = coco_results(
        sample_sheet({1: None}), prediction_sheet({1: Detections([2], [box], scores=[0.123456789012345])})
    )
    assert result["bbox"] == [0.1, 1 / 3, box[2] - 0.1, box[3] - 1 / 3]
    assert (result["score"], result["category_id"]) == (0.123456789012345, 3)


def test_coco_reads_the_results_with_masks_and_keypoints() -> None:
    mask = ellipse([20, 20, 60, 80])
    points = np.arange(51, dtype=np.float32).reshape(1, 17, 3)
    found = Detections([0], [[20, 20, 60, 80]], scores=np.float32([0.7]), masks=[mask], keypoints=points)
    content = coco_results_json(sample_sheet({"a": None, "b": None}), prediction_sheet({"a": found}))
    given = COCO()
    given.dataset = {"images": [{"id": "a", "height": HEIGHT, "width": WIDTH}], "categories": [], "annotations": []}
    with contextlib.redirect_stdout(io.StringIO()):
        given.createIndex()
        (annotation,) = given.loadRes(json.loads(content)).loadAnns([1])
    assert (coco.decode(annotation["segmentation"]) == mask).all()
    assert annotation["keypoints"] == points.reshape(-1).tolist()
    assert annotation["score"] == float(np.float32(0.7))


def test_the_data_sets_own_category_ids_are_used() -> None:
    sample = sample_sheet({7: None}, classes=2)
    sample.category_ids[:] = [18, 90]
    found = Detections([1, 0], [[0, 0, 5, 5], [1, 1, 6, 6]], scores=[0.5, 0.6])
    assert [each["category_id"] for each in coco_results(sample, prediction_sheet({7: found}))] == [90, 18]


def test_images_without_predictions_and_images_that_were_not_evaluated_have_no_results() -> None:
    sheet = prediction_sheet({1: Detections([], scores=[]), 3: Detections([], np.zeros((0, 4)), scores=np.zeros(0))})
    assert coco_results_json(sample_sheet({1: None, 2: None, 3: None}), sheet) == b"[]"


def test_segments_of_another_task_are_results_of_their_own() -> None:
    region = Detections([1], scores=[1.0], masks=[ellipse([0, 0, 50, 50])])
    sample, sheet = sample_sheet({1: None}), prediction_sheet({1: {"semantic": region}})
    assert coco_results(sample, sheet) == []
    (result,) = coco_results(sample, sheet, task="semantic")
    assert (sorted(result), result["category_id"]) == (["category_id", "image_id", "score", "segmentation"], 2)
