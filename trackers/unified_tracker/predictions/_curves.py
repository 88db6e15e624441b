"""Curves: precision and recall of each class over all images, as COCO accumulates them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from unified_tracker.predictions._regions import Floats

COCO_IOUS: Final = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS: Final = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class Tally:
    """One image, matched: what counts in a curve.

    Attributes:
        labels, scores: (d,) of the predictions, best score first.
        found: (t, d) bool: matched to an object that counts.
        ignored: (t, d) bool: neither right nor wrong.
        true_labels: Of the objects that count.
    """

    labels: npt.NDArray[np.int64]
    scores: Floats
    found: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    true_labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Curves:
    """Precision and recall of k classes at t IoU thresholds; NaN for classes without objects.

    Attributes:
        labels: (k,) the classes that occur, in truth or predictions.
        ious: t thresholds.
        precision: (t, 101, k) highest precision at a recall of at least 0, 0.01, ... 1.
        recall: (t, k) highest recall.
        recall_at_precision: (t, k) highest recall at which the precision is at least 0.9; 0 if it never is.
    """

    labels: list[int]
    ious: tuple[float, ...]
    precision: Floats
    recall: Floats
    recall_at_precision: Floats

    def average(self, iou: float | None = None) -> Floats:
        """(k,) average precision: at one threshold, or the mean of COCO's ten."""
        rows = [self.ious.index(each) for each in (COCO_IOUS if iou is None else (iou,))]
        return np.asarray(self.precision[rows].mean((0, 1)))


def accumulate(tallies: Iterable[Tally], ious: Sequence[float]) -> Curves:
    """All images together, as `COCOeval.accumulate` does it (area range "all", all predictions).

    Args:
        tallies: Images in the order in which equal scores count.
        ious: The t thresholds of the tallies.
    """
    images = list(tallies)
    labels, scores = _joined([each.labels for each in images]), _joined([each.scores for each in images])
    found = np.concatenate([np.zeros((len(ious), 0), bool), *(each.found for each in images)], 1)
    ignored = np.concatenate([np.zeros((len(ious), 0), bool), *(each.ignored for each in images)], 1)
    true = _joined([each.true_labels for each in images]).astype(np.int64)
    occurring = np.union1d(labels, true).astype(int).tolist()
    precision = np.full((len(ious), len(RECALLS), len(occurring)), np.nan)
    recall = np.full((len(ious), len(occurring)), np.nan)
    recall_at = np.full((len(ious), len(occurring)), np.nan)
    for column, label in enumerate(occurring):
        objects = int((true == label).sum())
        if not objects:
            continue
        chosen = np.flatnonzero(labels == label)
        chosen = chosen[np.argsort(np.negative(scores[chosen]), kind="stable")]
        counted = ~ignored[:, chosen]
        right = np.cumsum(found[:, chosen] & counted, 1).astype(float)
        wrong = np.cumsum(~found[:, chosen] & counted, 1).astype(float)
        exact = right / np.maximum(right + wrong, np.spacing(1))
        envelope = np.maximum.accumulate((right / (right + wrong + np.spacing(1)))[:, ::-1], 1)[:, ::-1]
        for row in range(len(ious)):
            reached = right[row] / objects
            places = np.searchsorted(reached, RECALLS, side="left")
            inside = places < len(reached)
            precision[row, :, column] = np.where(inside, np.append(envelope[row], 0)[places], 0)
            recall[row, column] = reached[-1] if len(reached) else 0
            recall_at[row, column] = reached[exact[row] >= 0.9].max(initial=0)
    return Curves(occurring, tuple(ious), precision, recall, recall_at)


def _joined(parts: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    return np.concatenate(parts) if parts else np.zeros(0)
