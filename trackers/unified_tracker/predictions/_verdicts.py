"""Verdicts: the predictions of one image and task beside what is true there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unified_tracker.predictions._confusion import Pairs, confuse
from unified_tracker.predictions._curves import COCO_IOUS, Tally
from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._matching import Matching, match, match_objects
from unified_tracker.predictions._regions import Regions, keypoint_similarity, overlaps
from unified_tracker.predictions._segments import MORE_THAN_HALF, Coverage, cover


@dataclass(frozen=True, slots=True)
class Judged:
    """What there is to say where something is true.

    Attributes:
        matching: At `thresholds(task, ious)`.
        confused: At the first of these and at the score threshold.
        coverage: Of panoptic and semantic masks.
        keypoints: Matched by OKS at COCO's thresholds, where both sides have keypoints.
    """

    matching: Matching
    confused: Pairs
    coverage: Coverage | None
    keypoints: Tally | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The predictions of one image and task.

    Attributes:
        predicted: Best score first.
        true: None if nobody has said what is true.
        judged: None with it.
    """

    predicted: Regions
    true: Regions | None = None
    judged: Judged | None = None


def thresholds(task: Task, ious: Sequence[float]) -> tuple[float, ...]:
    """IoU thresholds that are computed: those to look at, and then those that the scores of the task need."""
    needed = COCO_IOUS if task == "instances" else (0.5, MORE_THAN_HALF)
    return (*ious, *(each for each in needed if each not in ious))


def judge(
    predicted: Regions, true: Regions, task: Task, ious: Sequence[float], *, threshold: float, classes: int
) -> Verdict:
    """Compare.

    Args:
        predicted, true: Of one image and task.
        ious: Thresholds to look at.
        threshold: Score threshold of the confusion.
        classes: How many there are.
    """
    coverage = None
    if task != "instances" and _have_masks(predicted) and _have_masks(true):
        coverage = cover(predicted, true, classes)
    shared = overlaps(predicted, true) if coverage is None else coverage.overlaps
    spared = None if coverage is None else coverage.spared
    matching = match_objects(predicted, true, shared, thresholds(task, ious), spared)
    confused = confuse(predicted, true, shared, matching, iou=ious[0], threshold=threshold, classes=classes)
    keypoints = _by_keypoints(predicted, true) if task == "instances" else None
    return Verdict(predicted, true, Judged(matching, confused, coverage, keypoints))


def _have_masks(regions: Regions) -> bool:
    return regions.masks is not None or not len(regions)


def _by_keypoints(predicted: Regions, true: Regions) -> Tally | None:
    """As COCOeval with iouType "keypoints": what has no labelled keypoint is ignored, once."""
    if (predicted.keypoints is None and len(predicted)) or (true.keypoints is None and len(true)):
        return None
    ignore = true.crowd
    if true.keypoints is not None and len(true):
        ignore = ignore | ~(true.keypoints[:, :, 2] > 0).any(1)
    same = predicted.labels[:, None] == true.labels[None]
    similarity = np.where(same, keypoint_similarity(predicted, true), 0)
    matches = match(similarity, ignore, COCO_IOUS, true.crowd)
    ignored = (matches >= 0) & (ignore[matches] if len(true) else False)
    return Tally(predicted.labels, predicted.scores, matches >= 0, ignored, true.labels[~ignore])
