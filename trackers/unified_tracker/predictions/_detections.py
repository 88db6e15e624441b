"""Detections: the objects of one image, true or predicted, as a model or a data set hands them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

Task = Literal["instances", "panoptic", "semantic"]
"""What was asked of the model: objects (boxes, and masks and keypoints where there are any), panoptic segments, or one
region a class. An image may have several."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Objects of one image. n is their number, 0 included; arrays may be NumPy, PyTorch on any device, or lists.

    Nothing is checked or converted here: `Run.log_predictions` does it, and refuses an image that does not fit together
    while the others are recorded.

    Attributes:
        labels: (n,) integers, index into the classes of the sample, 0-based.
        boxes: (n, 4) float, x1 y1 x2 y2 in pixels of the original image; None where there are only masks.
        scores: (n,) float, 0 to 1; None for what is true.
        masks: (n, height, width) booleans; or n COCO run-length encodings ({"size": [height, width], "counts": ...},
            compressed or not); or n COCO polygons (lists of x y x y ... lists). None where there are only boxes.
            Masks may overlap. Panoptic segments and semantic regions are masks with their class as label.
        keypoints: (n, k, 3) float, x y v: pixels, and visibility (0 not labelled, 1 hidden, 2 visible) or a score.
        crowd: (n,) booleans: regions in which nothing counts as wrong (COCO's `iscrowd`). None: no such regions.
    """

    labels: Any
    boxes: Any = None
    scores: Any = None
    masks: Any = None
    keypoints: Any = None
    crowd: Any = None

    @classmethod
    def from_torchvision(cls, output: Mapping[str, Any]) -> Detections:
        """What torchvision's detection models return for one image, or take as its target.

        Args:
            output: "boxes" and "labels", and "scores", "masks", "keypoints" where the model has them. Labels stay as
                they are: torchvision counts the background as class 0, so give the sample "background" as first class.
                Masks of shape (n, 1, height, width) are probabilities and hold where they are above 0.5.
        """
        masks = output.get("masks")
        if masks is not None and getattr(masks, "ndim", 0) == 4:
            masks = masks[:, 0] > 0.5
        return cls(
            labels=output["labels"],
            boxes=output.get("boxes"),
            scores=output.get("scores"),
            masks=masks,
            keypoints=output.get("keypoints"),
            crowd=output.get("iscrowd"),
        )


TASKS: Final[tuple[Task, ...]] = get_args(Task)

TaskDetections = Detections | Mapping[Task, Detections]
"""The objects of one image: of the task "instances", or of several tasks by name."""

Polygons = Sequence[Sequence[float]]
