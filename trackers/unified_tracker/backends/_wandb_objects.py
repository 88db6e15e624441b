"""The objects of one image and task, in the numbers that the training gave: those of the page are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from unified_tracker.predictions._document import TRUE_POSITIVE, ShownObjects
from unified_tracker.predictions._sheets import Array, Objects

Numbers = list[list[float]]


@dataclass(frozen=True)
class TaskObjects:
    """n objects, best score first where there are scores.

    Attributes:
        labels: 0-based.
        corners: n times x1 y1 x2 y2 in pixels; around masks or keypoints where no boxes were given.
        masks: n compressed run-length encodings; empty without masks.
        keypoints: n times x y v one after the other; empty without keypoints.
        crowd: Indices of crowd regions.
        scores: n; empty for what is true.
        shown: The scores as they are compared with a threshold everywhere, rounded.
        overlaps, kinds, matches: As in `ShownObjects`, at the first IoU threshold; empty for what is true, and where
            nobody has said what is true.
    """

    labels: list[int] = field(default_factory=list)
    corners: Numbers = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    keypoints: Numbers = field(default_factory=list)
    crowd: frozenset[int] = frozenset()
    scores: list[float] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    kinds: str = ""
    matches: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, shown: ShownObjects, packed: Objects, height: int, width: int) -> TaskObjects:
        """What the analysis says of objects, and the objects as they were packed."""
        scores = None if packed.scores is None else _floats(packed.scores)
        order = np.arange(len(packed)) if scores is None else np.argsort(-scores, kind="stable")
        keypoints: Numbers = []
        if packed.keypoints is not None:
            keypoints = _floats(packed.keypoints)[order].reshape(len(order), -1).tolist()
        if packed.boxes is not None:
            corners: Numbers = _floats(packed.boxes)[order].tolist()
        else:
            corners = _around_masks(shown.m, height, width) if shown.m else _around_points(keypoints)
        return cls(
            list(shown.l),
            corners,
            list(shown.m),
            keypoints,
            frozenset(shown.c),
            [] if scores is None else scores[order].tolist(),
            list(shown.s),
            list(shown.o),
            shown.e[0] if shown.e else "",
            list(shown.g[0]) if shown.g else [],
        )

    def above(self, threshold: float) -> list[int]:
        """Indices of the predictions that score at least so much."""
        return [index for index, score in enumerate(self.shown) if score >= threshold]

    def missed_by(self, predicted: TaskObjects, threshold: float) -> list[int]:
        """Indices of these true objects that no prediction of at least this score has found."""
        hits = [index for index in predicted.above(threshold) if predicted.kinds[index : index + 1] == TRUE_POSITIVE]
        found = {predicted.matches[index] for index in hits} | self.crowd
        return [index for index in range(len(self.labels)) if index not in found]


def _floats(array: Array) -> npt.NDArray[Any]:
    return array.values().astype(np.float64)  # exact: what is packed has 32 or 64 bit


def _around_masks(counts: Sequence[str], height: int, width: int) -> Numbers:
    masks = [{"size": [height, width], "counts": each.encode()} for each in counts]
    boxes = np.asarray(coco.toBbox(masks), np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return [list(map(float, box)) for box in boxes]


def _around_points(keypoints: Numbers) -> Numbers:
    boxes = []
    for points in keypoints:
        seen = [(x, y) for x, y, there in zip(points[::3], points[1::3], points[2::3], strict=True) if there > 0]
        xs, ys = [x for x, _ in seen] or [0.0], [y for _, y in seen] or [0.0]
        boxes.append([min(xs), min(ys), max(xs), max(ys)])
    return boxes
