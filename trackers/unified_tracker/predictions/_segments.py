"""Segments: how well panoptic segments and semantic regions cover the pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unified_tracker.predictions import _masks
from unified_tracker.predictions._regions import Floats, Regions

MORE_THAN_HALF = float(np.nextafter(0.5, 1))
"""Segments that do not overlap each other match at most once above this IoU; panopticapi counts from here."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """The segments of one image on the true ones, pixel by pixel. What no true segment covers is void: unknown.

    Attributes:
        overlaps: (d, g) IoU; void belongs to no union, crowd regions overlap with nothing.
        spared: (d,) bool: more than half of it is void or in a crowd region of its class, so that it is no error.
        intersection, union: (k,) pixels of each class, void left out.
    """

    overlaps: Floats
    spared: npt.NDArray[np.bool_]
    intersection: Floats
    union: Floats


def cover(predicted: Regions, true: Regions, classes: int) -> Coverage:
    """Compare the masks of both sides; IoU and void as in panopticapi's `pq_compute_single_core`.

    Args:
        predicted, true: With masks, those of one side not overlapping each other.
        classes: k.
    """
    masks, true_masks = predicted.masks or [], true.masks or []
    common = _masks.intersections(masks, true_masks)
    area, true_area = _masks.areas(masks), _masks.areas(true_masks)
    void = np.maximum(area - common.sum(1), 0)
    same = predicted.labels[:, None] == true.labels[None]
    in_crowd = np.where(same & true.crowd[None], common, 0).sum(1)
    union = area[:, None] + true_area[None] - common - void[:, None]
    overlaps = np.divide(common, union, out=np.zeros_like(common), where=(union > 0) & ~true.crowd[None])
    intersection = _by_class(predicted.labels, np.where(same, common, 0).sum(1), classes)
    both = _by_class(predicted.labels, area - void, classes) + _by_class(true.labels, true_area, classes)
    return Coverage(overlaps, 2 * (void + in_crowd) > area, intersection, both - intersection)


def class_iou(images: Iterable[Coverage], classes: int) -> Floats:
    """(k,) IoU of each class over the pixels of all images; NaN for what is neither true nor predicted."""
    intersection, union = np.zeros(classes), np.zeros(classes)
    for image in images:
        intersection += image.intersection
        union += image.union
    return np.asarray(np.divide(intersection, union, out=np.full(classes, np.nan), where=union > 0))


@dataclass(frozen=True, slots=True)
class PanopticQuality:
    """Of k classes, 0 to 1; NaN for what is neither true nor predicted. PQ is SQ times RQ.

    Kirillov et al., "Panoptic Segmentation", CVPR 2019, equation 2.

    Attributes:
        pq, sq, rq: (k,) panoptic, segmentation and recognition quality.
    """

    pq: Floats
    sq: Floats
    rq: Floats


def panoptic_quality(
    true_positives: Floats, overlap: Floats, false_positives: Floats, missed: Floats
) -> PanopticQuality:
    """From the counts of each class over all images.

    Args:
        true_positives, false_positives, missed: (k,) counts at an IoU above 0.5.
        overlap: (k,) sum of the IoUs of the true positives.
    """
    counted = true_positives + (false_positives + missed) / 2
    nothing = np.where(counted > 0, 0, np.nan)  # as panopticapi: SQ of a class that was never found is 0
    sq = np.divide(overlap, true_positives, out=nothing.copy(), where=true_positives > 0)
    rq = np.divide(true_positives, counted, out=nothing.copy(), where=counted > 0)
    return PanopticQuality(sq * rq, sq, rq)


def _by_class(labels: npt.NDArray[np.int64], pixels: Floats, classes: int) -> Floats:
    return np.asarray(np.bincount(labels, pixels, classes), np.float64)
