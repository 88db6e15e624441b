"""Sheets from detections, and COCO's own answer on the same data, for tests of the analysis."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from unified_tracker.predictions import Detections, TaskDetections
from unified_tracker.predictions._sheets import ImageSheet, PredictionSheet, SampleSheet, by_task, pack

HEIGHT, WIDTH = 120, 160


def sample_sheet(
    truth: Mapping[Any, TaskDetections | None], classes: int = 3, *, height: int = HEIGHT, width: int = WIDTH
) -> SampleSheet:
    """A sample whose images are named by their ids."""
    images = [
        ImageSheet(
            image_id,
            f"{image_id}.jpg",
            height,
            width,
            "",
            0,
            0,
            None
            if given is None
            else {task: pack(each, height, width, classes, predicted=False) for task, each in by_task(given).items()},
        )
        for image_id, given in truth.items()
    ]
    names = [f"class {label}" for label in range(classes)]
    return SampleSheet("things", names, [label + 1 for label in range(classes)], [], [], images)


def prediction_sheet(
    predictions: Mapping[Any, TaskDetections],
    classes: int = 3,
    *,
    threshold: float = 0.3,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> PredictionSheet:
    """What a model said about such a sample."""
    return PredictionSheet(
        "val",
        threshold,
        {},
        {
            image_id: {
                task: pack(each, height, width, classes, predicted=True) for task, each in by_task(given).items()
            }
            for image_id, given in predictions.items()
        },
    )


def ellipse(box: Any, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width) bool: the ellipse in a box."""
    x1, y1, x2, y2 = box
    rows, columns = np.mgrid[:height, :width]
    return ((columns - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((rows - (y1 + y2) / 2) / (y2 - y1)) ** 2 <= 0.25


def random_detections(
    seed: int, images: int, objects: int, classes: int, *, masks: bool = False, keypoints: int = 0
) -> tuple[dict[int, Detections], dict[int, Detections]]:
    """Truth with crowd regions, and predictions near it and elsewhere, some of them with equal scores."""
    rng = np.random.default_rng(seed)
    truth, predicted = {}, {}
    for image_id in range(1, images + 1):
        count, found = rng.integers(0, objects + 1, 2)
        boxes = _boxes(rng, count)
        labels = rng.integers(0, classes, count)
        near = rng.integers(0, count, found) if count else np.zeros(found, int)
        guesses = _boxes(rng, found)
        guessed = rng.integers(0, classes, found)
        if count:
            close = rng.random(found) < 0.7
            guesses = np.where(close[:, None], boxes[near] + rng.normal(0, 3, (found, 4)), guesses)
            guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 2)
            guessed = np.where(close & (rng.random(found) < 0.8), labels[near], guessed)
        points = rng.uniform(0, 100, (count, keypoints, 3))
        points[..., 2] = rng.integers(0, 3, (count, keypoints))
        truth[image_id] = Detections(
            labels,
            boxes,
            masks=[ellipse(box) for box in boxes] if masks else None,
            keypoints=points if keypoints else None,
            crowd=rng.random(count) < 0.15,
        )
        guessed_points = np.ones((found, keypoints, 3))
        if keypoints and count:
            guessed_points[..., :2] = points[near][..., :2] + rng.normal(0, 4, (found, keypoints, 2))
        predicted[image_id] = Detections(
            guessed,
            guesses.astype(np.float32),
            scores=np.round(rng.random(found), 2).astype(np.float32),
            masks=[ellipse(box) for box in guesses] if masks else None,
            keypoints=guessed_points if keypoints else None,
        )
    return truth, predicted


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner, size = rng.uniform(0, 90, (count, 2)), rng.uniform(5, 40, (count, 2))
    return np.concatenate([corner, corner + size], 1)


def coco_eval(
    truth: Mapping[int, Detections],
    predicted: Mapping[int, Detections],
    classes: int,
    kind: str,
    *,
    sigmas: np.ndarray | None = None,
) -> COCOeval:
    """pycocotools' own evaluation, accumulated; object and prediction ids are 1 + 1000 * image + their index."""
    data: dict[str, Any] = {
        "images": [{"id": image_id, "height": HEIGHT, "width": WIDTH} for image_id in truth],
        "categories": [{"id": label, "name": str(label)} for label in range(classes)],
        "annotations": [],
    }
    for image_id, each in truth.items():
        for index, label in enumerate(each.labels):
            x1, y1, x2, y2 = np.asarray(each.boxes[index], np.float64).tolist()
            annotation = {
                "id": 1 + 1000 * image_id + index,
                "image_id": image_id,
                "category_id": int(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(each.crowd[index]),
            }
            if each.masks is not None:
                annotation["segmentation"] = _rle(each.masks[index])
            if each.keypoints is not None:
                annotation["keypoints"] = each.keypoints[index].reshape(-1).tolist()
                annotation["num_keypoints"] = int((each.keypoints[index][:, 2] > 0).sum())
            data["annotations"].append(annotation)
    found = COCO()
    found.dataset = {**data, "annotations": []}
    for image_id, each in predicted.items():
        for index, label in enumerate(each.labels):
            x1, y1, x2, y2 = np.asarray(each.boxes[index], np.float64).tolist()
            result = {
                "id": 1 + 1000 * image_id + index,
                "image_id": image_id,
                "category_id": int(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": float(each.scores[index]),
            }
            if each.masks is not None:
                result["segmentation"] = _rle(each.masks[index])
            if each.keypoints is not None:
                result["keypoints"] = each.keypoints[index].reshape(-1).tolist()
            found.dataset["annotations"].append(result)
    with contextlib.redirect_stdout(io.StringIO()):
        given = COCO()
        given.dataset = data
        given.createIndex()
        found.createIndex()
        evaluator = COCOeval(given, found, kind)
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.params.maxDets = [1000]
        evaluator.params.catIds = list(range(classes))
        evaluator.params.imgIds = list(truth)
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = sigmas
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _rle(mask: np.ndarray) -> dict[str, Any]:
    return dict(coco.encode(np.asfortranarray(mask.astype(np.uint8))))
