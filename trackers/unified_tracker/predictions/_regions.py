"""Regions: the objects of one image and task as they are compared, and how much they overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from unified_tracker.predictions import _masks
from unified_tracker.predictions._document import ShownObjects
from unified_tracker.predictions._sheets import Array, Objects

Floats = npt.NDArray[np.float64]
FARTHEST: Final = 1e7  # pixels


@dataclass(frozen=True, slots=True)
class Regions:
    """n objects of one image, predicted ones best score first; what scores alike stays in the order of the framework.

    Attributes:
        order: (n,) index that each has in the `Objects`.
        labels: (n,) int.
        scores: (n,) float; zeros for true objects.
        crowd: (n,) bool.
        boxes: (n, 4) x y width height in pixels: the given ones, else around the masks, else around the keypoints.
        with_boxes: Whether they were given.
        masks: n run-length encodings; None without masks.
        keypoints: (n, k, 3) x y v; None without.
    """

    order: npt.NDArray[np.intp]
    labels: npt.NDArray[np.int64]
    scores: Floats
    crowd: npt.NDArray[np.bool_]
    boxes: Floats
    with_boxes: bool
    masks: list[_masks.Rle] | None = None
    keypoints: Floats | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, objects: Objects, height: int, width: int) -> Regions:
        """Unpack and sort; height and width are those of the image, in pixels."""
        scores = np.zeros(len(objects)) if objects.scores is None else _float(objects.scores)
        order = np.argsort(-scores, kind="stable")  # as COCOeval: mergesort
        masks = None
        if objects.masks is not None:
            masks = _masks.encode([objects.masks[index] for index in order], height, width)
        keypoints = None if objects.keypoints is None else _float(objects.keypoints)[order]
        if objects.boxes is not None:
            boxes = _float(objects.boxes)[order]
            boxes[:, 2:] -= boxes[:, :2]
        elif masks is not None:
            boxes = _masks.boxes(masks)
        else:
            boxes = _around(keypoints, len(objects))
        crowd = np.zeros(len(objects), bool) if objects.crowd is None else objects.crowd.values()[order]
        labels, with_boxes = objects.labels.values().astype(np.int64)[order], objects.boxes is not None
        return cls(order, labels, scores[order], crowd, boxes, with_boxes, masks, keypoints)

    @classmethod
    def of_shown(cls, objects: ShownObjects, chosen: list[int], height: int, width: int) -> Regions:
        """Some of the predictions of a document, in their order."""
        boxes = np.array([objects.b[4 * index : 4 * index + 4] for index in chosen if objects.b], np.float64)
        keypoints = [np.asarray(objects.k[index], np.float64).reshape(-1, 3) for index in chosen if objects.k]
        packed = Objects(
            Array.of(np.array([objects.l[index] for index in chosen], np.int32)),
            Array.of(boxes.reshape(-1, 4)) if objects.b else None,
            Array.of(np.array([objects.s[index] for index in chosen], np.float64)),
            [objects.m[index].encode() for index in chosen] if objects.m else None,
            Array.of(np.stack(keypoints)) if keypoints else None,
        )
        return cls.of(packed, height, width)


def _float(array: Array) -> Floats:
    """A diverged model says NaN and infinity; JSON and the geometry have neither."""
    return np.clip(np.nan_to_num(array.values().astype(np.float64)), -FARTHEST, FARTHEST)


def _around(keypoints: Floats | None, count: int) -> Floats:
    boxes = np.zeros((count, 4))
    for box, points in zip(boxes, [] if keypoints is None else keypoints, strict=False):
        seen = points[points[:, 2] > 0, :2]
        if len(seen):
            box[:2], box[2:] = seen.min(0), np.ptp(seen, 0)
    return boxes


def overlaps(predicted: Regions, true: Regions) -> Floats:
    """Intersection over union of all pairs: of the masks where both sides have masks, else of the boxes.

    A crowd region counts as COCO has it: intersection over the area of the prediction.

    Returns:
        (d, g), 0 to 1; 0 where it is undefined.
    """
    if not len(predicted) or not len(true):
        return np.zeros((len(predicted), len(true)))
    if predicted.masks is not None and true.masks is not None:
        found = coco.iou(predicted.masks, true.masks, true.crowd.astype(int).tolist())
    else:
        found = coco.iou(predicted.boxes, true.boxes, true.crowd.astype(int).tolist())
    return np.nan_to_num(np.asarray(found, np.float64))  # two empty boxes


COCO_SIGMAS: Final = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
"""Of COCO's 17 keypoints, as in pycocotools."""
UNIFORM_SIGMA: Final = 0.05
"""Of keypoints that nobody has measured how exactly people place them."""


def keypoint_similarity(predicted: Regions, true: Regions) -> Floats:
    """COCO's object keypoint similarity (OKS) of all pairs, as in pycocotools' `computeOks`.

    The scale of an object is the area of its mask, or of its box where it has none. Sigmas are COCO's for 17 keypoints,
    else `UNIFORM_SIGMA`. Objects without labelled keypoints are compared by their box, doubled.

    Returns:
        (d, g), 0 to 1.
    """
    found, given = predicted.keypoints, true.keypoints
    if found is None or given is None or not len(found) or not len(given) or found.shape[1] != given.shape[1]:
        return np.zeros((len(predicted), len(true)))
    count = given.shape[1]
    sigmas = COCO_SIGMAS if count == len(COCO_SIGMAS) else np.full(count, UNIFORM_SIGMA)
    area = _masks.areas(true.masks) if true.masks is not None else true.boxes[:, 2] * true.boxes[:, 3]
    labelled = given[:, :, 2] > 0
    distance = found[:, None, :, :2] - given[None, :, :, :2]  # (d, g, k, 2)
    corner, size = true.boxes[None, :, None, :2], true.boxes[None, :, None, 2:]
    points = found[:, None, :, :2]
    outside = np.maximum(0, corner - size - points) + np.maximum(0, points - (corner + 2 * size))
    any_labelled: npt.NDArray[np.bool_] = np.asarray(labelled.any(1))
    distance = np.where(any_labelled[None, :, None, None], distance, outside)
    counted = labelled | ~any_labelled[:, None]
    variances = (2 * sigmas) ** 2
    error = (distance**2).sum(3) / variances / (area[None, :, None] + np.spacing(1)) / 2
    similarity = (np.exp(-error) * counted[None]).sum(2) / np.maximum(counted.sum(1), 1)
    return np.nan_to_num(np.asarray(similarity, np.float64))
