"""Confusion: which class was taken for which."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from unified_tracker.predictions._matching import Matching, match
from unified_tracker.predictions._regions import Floats, Regions

Pairs = npt.NDArray[np.int64]
"""(n, 2): true and predicted class of one thing; the number of classes stands for the background."""


def confuse(
    predicted: Regions,
    true: Regions,
    overlaps: Floats,
    matching: Matching,
    *,
    iou: float,
    threshold: float,
    classes: int,
) -> Pairs:
    """Pair what is true in one image with what was predicted: each object once, each prediction once.

    What COCO matches stays matched. Among the rest, in the order of the scores, a prediction takes the object that it
    overlaps most, of whatever class. What is left is missed, or nothing but background; crowd regions and what lies in
    them do not count.

    Args:
        predicted, true, overlaps: As for `match_objects`.
        matching: Its answer; the first threshold is used.
        iou: That threshold.
        threshold: Lowest score of a prediction that counts.
        classes: How many there are.
    """
    shown = predicted.scores >= threshold
    first = matching.matches[0]
    right = shown & (first >= 0) & ~matching.ignored[0]
    wrong = shown & (first < 0) & ~matching.ignored[0]
    left = ~true.crowd
    left[first[right]] = False
    taken = match(np.where(wrong[:, None] & left[None], overlaps, 0), np.zeros(len(true), bool), [iou])[0]
    mistaken = np.flatnonzero(taken >= 0)
    left[taken[mistaken]] = False
    background = np.flatnonzero(wrong & (taken < 0))
    return np.concatenate(
        [
            np.stack([true.labels[first[right]], predicted.labels[right]], 1),
            np.stack([true.labels[taken[mistaken]], predicted.labels[mistaken]], 1),
            np.stack([np.full(len(background), classes), predicted.labels[background]], 1),
            np.stack([true.labels[left], np.full(left.sum(), classes)], 1),
        ]
    )


def confusion_matrix(images: Iterable[Pairs], classes: int) -> npt.NDArray[np.int64]:
    """(k + 1, k + 1) counts: rows are true classes, columns predicted ones, the last of each is the background."""
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for pairs in images:
        np.add.at(matrix, (pairs[:, 0], pairs[:, 1]), 1)
    return matrix
