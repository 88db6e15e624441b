"""COCO results: predictions in the format that COCO's evaluation servers and tools read."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from unified_tracker.predictions import _masks
from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._sheets import Objects, PredictionSheet, SampleSheet


def coco_results(
    sample: SampleSheet, predictions: PredictionSheet, *, task: Task = "instances"
) -> list[dict[str, Any]]:
    """One dictionary a prediction, in the order of the sample and of the framework.

    Scores, corners and keypoints are the framework's own: a float32 becomes the float of the same value. Width and
    height are the exact difference of the corners, as MMDetection's `results2json` has them; Detectron2 rounds that
    difference to float32.

    Returns:
        "image_id", "category_id" (the data set's own), "score"; "bbox" (x y width height in pixels), "segmentation"
        (compressed run lengths) and "keypoints" (x y v one after the other) where there are any.
    """
    results: list[dict[str, Any]] = []
    for image in sample.images:
        objects = predictions.images.get(image.id, {}).get(task)
        if objects is not None:
            columns = _columns(objects, sample.category_ids, image.height, image.width)
            names = list(columns)
            results += [
                {"image_id": image.id, **dict(zip(names, row, strict=True))}
                for row in zip(*columns.values(), strict=True)
            ]
    return results


def coco_results_json(sample: SampleSheet, predictions: PredictionSheet, *, task: Task = "instances") -> bytes:
    """`coco_results` as JSON, for `COCO.loadRes`; what is not finite is null."""
    return msgspec.json.encode(coco_results(sample, predictions, task=task))


def _columns(objects: Objects, category_ids: list[int], height: int, width: int) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"category_id": [category_ids[label] for label in objects.labels.values().tolist()]}
    if objects.boxes is not None:
        boxes = objects.boxes.values().astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        columns["bbox"] = boxes.tolist()
    if objects.scores is not None:
        columns["score"] = objects.scores.values().tolist()
    if objects.masks is not None:
        columns["segmentation"] = [
            {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
            for mask in _masks.encode(objects.masks, height, width)
        ]
    if objects.keypoints is not None:
        columns["keypoints"] = objects.keypoints.values().reshape(len(objects), -1).tolist() if len(objects) else []
    return columns
