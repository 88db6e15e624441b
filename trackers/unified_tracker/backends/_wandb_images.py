"""Images in W&B's tables: a picture under layers of boxes and masks that can be switched, by class and by score.

A box has as numbers to filter by: `score`; `iou`, its overlap with what it was compared with; `error`, 1 for what is
wrong and 0 for what is right. W&B filters no masks by score: of instances those above the score threshold are shown,
and all are in the artifact's COCO results. Keypoints are small boxes, named and coloured by keypoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from unified_tracker.backends._wandb_masks import MaskLayers, group_of, layer_name, png, value_of
from unified_tracker.backends._wandb_objects import TaskObjects
from unified_tracker.backends._wandb_store import Store, Stored
from unified_tracker.backends._wandb_tables import ImageColumn, text
from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._document import IGNORED
from unified_tracker.predictions._sheets import SampleSheet
from unified_tracker.predictions._summary import ERRORS

TRUTH, PREDICTIONS, MISSED = "ground_truth", "predictions", "missed"  # the first two as in MMDetection 2.x
KEYPOINTS: Final = 100_000  # class ids from here on are keypoints
POINT: Final = 2.0  # half the side of a keypoint's box, pixels
MASK_SUFFIX: Final = ".mask.png"
SAID: Final = {**ERRORS, IGNORED: "in a crowd region"}
Box = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """What a data set's classes and keypoints are called. Class ids are 1-based, as W&B's masks need them."""

    classes: list[str]
    keypoints: list[str]

    @classmethod
    def of(cls, sample: SampleSheet) -> Names:
        """Of a sample."""
        return cls([text(name) for name in sample.classes], [text(name) for name in sample.keypoint_names])

    def keypoint(self, number: int) -> str:
        """Name of a keypoint, 0-based; data sets may have none."""
        return self.keypoints[number] if number < len(self.keypoints) else f"keypoint {number + 1}"

    def every(self) -> dict[int, str]:
        """Class id to name."""
        points = {KEYPOINTS + number: name for number, name in enumerate(self.keypoints)}
        return {**{label + 1: name for label, name in enumerate(self.classes)}, **points}


class LayeredImage:
    """The layers over one picture, in the making.

    Attributes:
        boxes, masks: As a cell of W&B's tables has them.
        mask_files: Name in the artifact to file.
        left_out: Masks for which there was no layer.
    """

    def __init__(self, height: int, width: int, names: Names, column: ImageColumn, store: Store) -> None:
        self._height, self._width, self._names, self._column, self._store = height, width, names, column, store
        self.boxes: dict[str, list[Box]] = {}
        self.masks: dict[str, dict[str, str]] = {}
        self.mask_files: dict[str, Stored] = {}
        self.left_out = 0

    def add_truth(self, objects: TaskObjects, layer: str, only: Sequence[int] | None = None) -> None:
        """Boxes and keypoints of true objects, or of `only` some of them."""
        kept = range(len(objects.labels)) if only is None else only
        self._add_boxes(
            layer,
            objects,
            kept,
            lambda index: " (crowd region)" if index in objects.crowd else "",
            lambda index: None,
        )
        if only is None:
            self._add_keypoints(layer, objects, kept)

    def add_predictions(self, objects: TaskObjects, threshold: float) -> None:
        """Boxes of all predictions; keypoints of those with at least this score."""

        def caption(index: int) -> str:
            said = SAID.get(objects.kinds[index : index + 1])
            return f" {objects.scores[index]:.2f}" + (f", {said}" if said else "")

        def scores(index: int) -> dict[str, float] | None:
            score = objects.scores[index]
            found: dict[str, float] = {"score": score} if math.isfinite(score) else {}
            if objects.kinds:
                found |= {"iou": objects.overlaps[index], "error": int(objects.kinds[index] in ERRORS)}
            return found

        self._add_boxes(PREDICTIONS, objects, range(len(objects.labels)), caption, scores)
        self._add_keypoints(PREDICTIONS, objects, objects.above(threshold), scores)

    def add_masks(self, layer: str, task: Task, objects: TaskObjects, only: Sequence[int] | None = None) -> None:
        """Masks of objects, or of `only` some of them."""
        if not objects.masks:
            return
        kept = range(len(objects.labels)) if only is None else only
        placed = MaskLayers(self._height, self._width)
        placed.add([objects.labels[index] for index in kept], [objects.masks[index] for index in kept])
        self.left_out += placed.left_out
        title = layer if task == "instances" else f"{layer}, {task}"
        names, labels = self._names.classes, {objects.labels[index] for index in kept}
        for group, number, bitmap in placed.maps():
            name = layer_name(title, group, number, len(names))
            file = self._store.put(png(bitmap), MASK_SUFFIX)
            path = f"media/images/mask/{file.name}{MASK_SUFFIX}"
            self.mask_files[path] = file
            self.masks[name] = {"_type": "mask", "path": path, "sha256": file.sha256}
            values = set(np.flatnonzero(np.bincount(bitmap.ravel())).tolist())
            known = self._column.masks.setdefault(name, {})
            mine = [label for label in labels if group_of(label) == group and value_of(label) in values]
            known |= {value_of(label): names[label] for label in mine}

    def _add_boxes(
        self,
        layer: str,
        objects: TaskObjects,
        kept: Sequence[int],
        caption: Callable[[int], str],
        scores: Callable[[int], dict[str, float] | None],
    ) -> None:
        boxes, names = self.boxes.setdefault(layer, []), self._column.boxes.setdefault(layer, {})
        for index in kept:
            label = objects.labels[index]
            names[label + 1] = self._names.classes[label]
            self._add_box(boxes, objects.corners[index], label + 1, names[label + 1] + caption(index), scores(index))

    def _add_keypoints(
        self,
        layer: str,
        objects: TaskObjects,
        kept: Sequence[int],
        scores: Callable[[int], dict[str, float] | None] = lambda index: None,
    ) -> None:
        if not objects.keypoints:
            return
        layer = f"{layer}, keypoints"
        boxes, names = self.boxes.setdefault(layer, []), self._column.boxes.setdefault(layer, {})
        for index in kept:
            points = objects.keypoints[index]
            for number, (x, y, seen) in enumerate(zip(points[::3], points[1::3], points[2::3], strict=True)):
                if seen > 0:
                    name = names[KEYPOINTS + number] = self._names.keypoint(number)
                    corners = [x - POINT, y - POINT, x + POINT, y + POINT]
                    self._add_box(boxes, corners, KEYPOINTS + number, name, scores(index))

    def _add_box(
        self, boxes: list[Box], corners: list[float], number: int, caption: str, scores: dict[str, float] | None
    ) -> None:
        if not all(map(math.isfinite, corners)):
            return  # of a model that has diverged; JSON has no word for it
        position = dict(zip(("minX", "minY", "maxX", "maxY"), corners, strict=True))
        box: Box = {"position": position, "class_id": number, "box_caption": caption, "domain": "pixel"}
        if scores is not None:
            box["scores"] = scores
            self._column.scores.update(scores)
        boxes.append(box)
