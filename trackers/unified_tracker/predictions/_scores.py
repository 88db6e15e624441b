"""Scores: what the predictions of one task are worth over all images, by class and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unified_tracker.predictions._confusion import confusion_matrix
from unified_tracker.predictions._curves import COCO_IOUS, Curves, Tally, accumulate
from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._document import ClassRow
from unified_tracker.predictions._regions import Floats, Regions
from unified_tracker.predictions._segments import MORE_THAN_HALF, class_iou, panoptic_quality
from unified_tracker.predictions._verdicts import Judged, Verdict, thresholds

Judgement = tuple[Regions, Regions, Judged]
"""Predicted, true, and what there is to say."""


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Over all images of which somebody has said what is true.

    Attributes:
        rows: All classes together first, then by label those that have objects or predictions at the score threshold.
        confusion: (k + 1, k + 1), as in `ShownEvaluation`.
        curves: Of instances; segments are not ranked by score.
        metrics: On these images: "keypoints/AP", "keypoints/AP50", "panoptic/PQ", "panoptic/SQ", "panoptic/RQ",
            "semantic/mIoU"; 0 to 1.
    """

    rows: list[ClassRow]
    confusion: npt.NDArray[np.int64]
    curves: Curves | None
    metrics: dict[str, float]


def score(
    verdicts: Sequence[Verdict], task: Task, ious: Sequence[float], *, threshold: float, classes: int
) -> TaskScores:
    """Add up the verdicts of all images.

    Args:
        verdicts: In the order of the sample.
        ious: Thresholds to look at, as they were given to `judge`.
        threshold: Lowest score of a prediction that counts in the counts.
        classes: How many there are.
    """
    judged = [(each.predicted, each.true, each.judged) for each in verdicts if each.true is not None and each.judged]
    computed = thresholds(task, ious)
    counts = _Counts.of(judged, computed.index(0.5), threshold, classes)
    curves, average, average_50, recall_at = None, *np.full((3, classes), np.nan)
    quality = np.full(classes, np.nan)
    metrics: dict[str, float]
    if task == "instances":
        curves = accumulate((_tally(each, [computed.index(iou) for iou in COCO_IOUS]) for each in judged), COCO_IOUS)
        average[curves.labels], average_50[curves.labels] = curves.average(), curves.average(0.5)
        recall_at[curves.labels] = curves.recall_at_precision[0]
        quality, metrics = _keypoints(judged, classes)
    elif task == "panoptic":
        quality, metrics = _panoptic(judged, computed.index(MORE_THAN_HALF), classes)
    else:
        quality = class_iou([each.coverage for _, _, each in judged if each.coverage], classes)
        metrics = {"semantic/mIoU": _mean(quality)}
    columns = np.stack([average, average_50, recall_at, quality], 1)
    rows = [counts.row(slice(None), -1, [_mean(column) for column in columns.T])]
    rows += [counts.row(label, label, columns[label].tolist()) for label in np.flatnonzero(counts.occurs).tolist()]
    matrix = confusion_matrix([each.confused for _, _, each in judged], classes)
    return TaskScores(rows, matrix, curves, {name: value for name, value in metrics.items() if np.isfinite(value)})


@dataclass(frozen=True, slots=True)
class _Counts:
    """(k,) of each class."""

    right: Floats
    wrong: Floats
    objects: Floats

    @classmethod
    def of(cls, judged: Sequence[Judgement], row: int, threshold: float, classes: int) -> _Counts:
        right, wrong, objects = np.zeros((3, classes))
        for predicted, true, each in judged:
            found, ignored = each.matching.matches[row] >= 0, each.matching.ignored[row]
            shown = (predicted.scores >= threshold) & ~ignored
            right += np.bincount(predicted.labels[shown & found], minlength=classes)
            wrong += np.bincount(predicted.labels[shown & ~found], minlength=classes)
            objects += np.bincount(true.labels[~true.crowd], minlength=classes)
        return cls(right, wrong, objects)

    @property
    def occurs(self) -> npt.NDArray[np.bool_]:
        return (self.right + self.wrong + self.objects) > 0

    def row(self, chosen: int | slice, label: int, scores: Sequence[float]) -> ClassRow:
        """scores: AP, AP50, recall at precision, quality; NaN for none."""
        right, wrong, objects = (int(each[chosen].sum()) for each in (self.right, self.wrong, self.objects))
        average, average_50, recall_at, quality = (None if np.isnan(each) else float(each) for each in scores)
        return ClassRow(
            label,
            average,
            average_50,
            right,
            wrong,
            objects - right,
            right / (right + wrong) if right + wrong else None,
            right / objects if objects else None,
            recall_at,
            quality,
        )


def _tally(judgement: Judgement, rows: list[int]) -> Tally:
    predicted, true, judged = judgement
    matching = judged.matching
    found = matching.matches[rows] >= 0
    return Tally(predicted.labels, predicted.scores, found, matching.ignored[rows], true.labels[~true.crowd])


def _keypoints(judged: Sequence[Judgement], classes: int) -> tuple[Floats, dict[str, float]]:
    tallies = [each.keypoints for _, _, each in judged if each.keypoints]
    average, average_50 = np.full((2, classes), np.nan)
    if any(predicted.keypoints is not None for predicted, _, _ in judged):
        curves = accumulate(tallies, COCO_IOUS)
        average[curves.labels], average_50[curves.labels] = curves.average(), curves.average(0.5)
    return average, {"keypoints/AP": _mean(average), "keypoints/AP50": _mean(average_50)}


def _panoptic(judged: Sequence[Judgement], row: int, classes: int) -> tuple[Floats, dict[str, float]]:
    right, wrong, missed, overlap = np.zeros((4, classes))
    for predicted, true, each in judged:
        matches, ignored = each.matching.matches[row], each.matching.ignored[row]
        found = np.flatnonzero(matches >= 0)
        labels = predicted.labels[found]
        right += np.bincount(labels, minlength=classes)
        if each.coverage:
            overlap += np.bincount(labels, each.coverage.overlaps[found, matches[found]], classes)
        wrong += np.bincount(predicted.labels[(matches < 0) & ~ignored], minlength=classes)
        missed += np.bincount(true.labels[~true.crowd], minlength=classes) - np.bincount(labels, minlength=classes)
    quality = panoptic_quality(right, overlap, wrong, missed)
    means = {"PQ": quality.pq, "SQ": quality.sq, "RQ": quality.rq}
    return quality.pq, {f"panoptic/{name}": _mean(values) for name, values in means.items()}


def _mean(values: Floats) -> float:
    """Of the classes that have a value, as COCO and panopticapi take it; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
