"""Masks: COCO's run-length encodings, from what a sheet has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from unified_tracker.predictions._sheets import Mask

FARTHEST: Final = 1e5  # pixels, of a polygon's corner


class Rle(TypedDict):
    """One mask as pycocotools takes it: size is [height, width], counts are compressed."""

    size: list[int]
    counts: bytes


def encode(masks: Sequence[Mask], height: int, width: int) -> list[Rle]:
    """Polygons and run-length counts alike, as run-length encodings of the size of the image."""
    return [
        {"size": [height, width], "counts": mask} if isinstance(mask, bytes) else _polygons(mask, height, width)
        for mask in masks
    ]


def areas(masks: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """(n,) number of pixels."""
    return np.asarray(coco.area(list(masks)), np.float64).reshape(-1)


def boxes(masks: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """(n, 4) smallest boxes around, x y width height in pixels; zeros around nothing."""
    return np.asarray(coco.toBbox(list(masks)), np.float64).reshape(-1, 4)


def intersections(predicted: Sequence[Rle], true: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """(d, g) number of pixels that a predicted and a true mask have in common."""
    if not predicted or not true:
        return np.zeros((len(predicted), len(true)))
    # With crowd regions COCO divides by the area of the prediction alone: the exact count comes back.
    shares = np.asarray(coco.iou(list(predicted), list(true), [1] * len(true)), np.float64)
    return np.rint(shares * areas(predicted)[:, None])


def _polygons(polygons: list[list[float]], height: int, width: int) -> Rle:
    # Fewer than three corners enclose nothing, and pycocotools would read four numbers as a box. It walks along every
    # edge: one to infinity takes for ever.
    closed = [np.clip(np.nan_to_num(polygon), -FARTHEST, FARTHEST) for polygon in polygons if len(polygon) >= 6]
    if not closed:
        empty = np.zeros((height, width), np.uint8, order="F")
        return {"size": [height, width], "counts": coco.encode(empty)["counts"]}
    merged = coco.merge(coco.frPyObjects(closed, height, width))
    return {"size": [height, width], "counts": merged["counts"]}
