"""Matching: which prediction found which true object, and what the others are.

The overlaps are pycocotools'; who gets whom is decided as its `COCOeval.evaluateImg` decides it (area range "all", all
predictions), which a test compares match by match. COCOeval itself is not called: it wants every object as a
dictionary, prints, and walks all pairs of a class at each threshold, where few overlap; and it computes overlaps within
a class only, while the kinds of error need those with other classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from unified_tracker.predictions import _document as kinds
from unified_tracker.predictions._regions import Floats, Regions

NEARLY: Final = 0.1  # overlap from which a prediction of the right class is badly placed and not background
UNMATCHED: Final = -1


@dataclass(frozen=True, slots=True)
class Matching:
    """What the d predictions of one image are, best score first, at t IoU thresholds.

    The match and the kind of a prediction depend on those that score higher, never on those below: what a score slider
    hides changes nothing about what it leaves.

    Attributes:
        matches: (t, d) index of the true object, `UNMATCHED` without.
        ignored: (t, d) bool: neither right nor wrong, as it lies in a crowd region or in what nobody has labelled.
        kinds: t strings of d letters.
        overlap: (d,) with its match at the first threshold; else the highest with any object that is no crowd region.
    """

    matches: npt.NDArray[np.intp]
    ignored: npt.NDArray[np.bool_]
    kinds: list[str]
    overlap: Floats


def match_objects(
    predicted: Regions,
    true: Regions,
    overlaps: Floats,
    ious: Sequence[float],
    spared: npt.NDArray[np.bool_] | None = None,
) -> Matching:
    """Match the predictions of one image, and say what each is.

    Args:
        predicted, true: Best score first, as `Regions.of` returns them.
        overlaps: (d, g).
        ious: t thresholds.
        spared: (d,) predictions that are ignored if they find nothing.
    """
    same = predicted.labels[:, None] == true.labels[None]
    matches = match(np.where(same, overlaps, 0), true.crowd, ious)
    ignored = (matches >= 0) & _take(true.crowd, matches)
    if spared is not None:
        ignored |= (matches < 0) & spared
    right = np.where(true.crowd[None], 0, overlaps)
    own, other = _highest(np.where(same, right, 0)), _highest(np.where(same, 0, right))
    letters = []
    for row, in_crowd, iou in zip(matches, ignored, ious, strict=True):
        least = _least(iou)
        conditions = [in_crowd, row >= 0, own >= least, other >= least, own >= NEARLY]
        choices = [kinds.IGNORED, kinds.TRUE_POSITIVE, kinds.DUPLICATE, kinds.WRONG_CLASS, kinds.BADLY_PLACED]
        letters.append("".join(np.select(conditions, choices, kinds.BACKGROUND)))
    first = matches[0] if len(matches) else np.full(len(predicted), UNMATCHED)
    at_match = np.zeros(len(predicted))
    found = np.flatnonzero(first >= 0)
    at_match[found] = overlaps[found, first[found]]
    return Matching(matches, ignored, letters, np.where(first >= 0, at_match, _highest(right)))


def match(
    overlaps: Floats, ignore: npt.NDArray[np.bool_], ious: Sequence[float], again: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.intp]:
    """Greedy matching as COCO does it: in the order of the predictions, each takes what overlaps most of what is left.

    Args:
        overlaps: (d, g), 0 for pairs that cannot match. Best score first.
        ignore: (g,) objects that a prediction takes only if it gets no other.
        ious: t thresholds; an overlap has to reach it.
        again: (g,) objects that may be taken several times: crowd regions. Default: those that are ignored.

    Returns:
        (t, d) index of the true object, or `UNMATCHED`.
    """
    matches = np.full((len(ious), len(overlaps)), UNMATCHED, np.intp)
    if not overlaps.size or not len(ious):
        return matches
    # Few pairs overlap enough: Python walks those only. Ignored ones come last, as in COCOeval.
    pairs: dict[int, list[tuple[int, float]]] = {}
    columns = np.argsort(ignore, kind="stable")
    lowest = max(min(_least(iou) for iou in ious), np.spacing(0))
    for index, column in np.argwhere(overlaps[:, columns] >= lowest).tolist():
        true = int(columns[column])
        pairs.setdefault(index, []).append((true, float(overlaps[index, true])))
    ignored, reusable = ignore.tolist(), (ignore if again is None else again).tolist()
    for row, iou in zip(matches, ious, strict=True):
        taken: set[int] = set()
        for index, candidates in pairs.items():
            highest, best = _least(iou), UNMATCHED
            for true, overlap in candidates:
                if true in taken and not reusable[true]:
                    continue
                if best >= 0 and ignored[true] and not ignored[best]:
                    break
                if overlap >= highest:  # of equals the last, as in COCOeval
                    highest, best = overlap, true
            if best >= 0:
                taken.add(best)
                row[index] = best
    return matches


def _least(iou: float) -> float:
    return min(iou, 1 - 1e-10)  # COCOeval's: rounding must not keep what is equal from matching


def _take(values: npt.NDArray[np.bool_], indices: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    return values[indices] if len(values) else np.zeros(indices.shape, bool)


def _highest(overlaps: Floats) -> Floats:
    return np.asarray(overlaps.max(1, initial=0))
