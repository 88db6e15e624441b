"""The comparison of two evaluations: what got fixed and what broke, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unified_tracker.predictions import _document as kinds
from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._document import ShownEvaluation, ShownImage, ShownObjects
from unified_tracker.predictions._matching import match
from unified_tracker.predictions._regions import Regions, overlaps
from unified_tracker.predictions._sample import ImageId
from unified_tracker.predictions._summary import ERRORS, shown_letters


@dataclass(frozen=True, slots=True)
class ImageChange:
    """One image, before and after.

    Attributes:
        found, lost: Indices of true objects that only the later or only the earlier evaluation found.
        new: Indices of the later evaluation's false positives that the earlier one did not have.
        gone: Indices of the earlier evaluation's false positives that the later one does not have.
    """

    id: ImageId
    name: str
    found: list[int]
    lost: list[int]
    new: list[int]
    gone: list[int]

    @property
    def fixed(self) -> int:
        """How much got better."""
        return len(self.found) + len(self.gone)

    @property
    def broken(self) -> int:
        """How much got worse."""
        return len(self.lost) + len(self.new)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two evaluations.

    Attributes:
        changes: Of the images that both evaluated, in the order of the later one; those without any change too.
        left_out: Images that only one of them evaluated, or of which not the same is true in both.
    """

    changes: list[ImageChange]
    left_out: list[ImageId]


def compare(
    images: Sequence[ShownImage],
    before: ShownEvaluation,
    after: ShownEvaluation,
    *,
    images_before: Sequence[ShownImage] | None = None,
    task: Task = "instances",
    iou: int = 0,
    threshold: float | None = None,
) -> Comparison:
    """Compare two evaluations of the same images.

    A false positive is the same in both where class and place agree: the overlap reaches the IoU threshold.

    Args:
        images: Of the document that the later evaluation is in.
        before, after: The evaluations.
        images_before: Of the document that the earlier one is in; default: the same document. Images are the same by
            their id, if the same is true about them; both documents have to have the same classes.
        task: What was asked of the models.
        iou: Index into the IoU thresholds of the later evaluation; the earlier one needs the same threshold.
        threshold: Lowest score that counts; default: each evaluation's own.

    Raises:
        ValueError: The earlier evaluation has no matches at that IoU threshold.
    """
    least = after.ious[iou]
    if least not in before.ious:
        raise ValueError(f"{before.label!r} has no matches at IoU {least}, only at {before.ious}")
    rows = before.ious.index(least), iou
    scores = [each.threshold if threshold is None else threshold for each in (before, after)]
    earlier = {
        image.id: (image, predictions)
        for image, predictions in zip(images if images_before is None else images_before, before.images, strict=True)
    }
    changes, left_out = [], []
    for image, predictions in zip(images, after.images, strict=True):
        image_before, predictions_before = earlier.pop(image.id, (None, None))
        sides = (predictions_before or {}).get(task), (predictions or {}).get(task)
        true = (image.truth or {}).get(task)
        if image_before is None or true is None or (image_before.truth or {}).get(task) != true or None in sides:
            left_out.append(image.id)
            continue
        changes.append(_change(image, [each for each in sides if each], rows, scores, least))
    return Comparison(changes, [*left_out, *earlier])


def _change(
    image: ShownImage, sides: list[ShownObjects], rows: tuple[int, int], scores: list[float], iou: float
) -> ImageChange:
    letters = [shown_letters(side, row, least) for side, row, least in zip(sides, rows, scores, strict=True)]
    found = [
        {side.g[row][index] for index, letter in shown if letter == kinds.TRUE_POSITIVE}
        for side, row, shown in zip(sides, rows, letters, strict=True)
    ]
    wrong = [[index for index, letter in shown if letter in ERRORS] for shown in letters]
    first, second = (
        Regions.of_shown(side, chosen, image.height, image.width) for side, chosen in zip(sides, wrong, strict=True)
    )
    same = second.labels[:, None] == first.labels[None]
    nothing = np.zeros(len(first), bool)
    kept = match(np.where(same, overlaps(second, first), 0), nothing, [iou])[0].tolist()
    return ImageChange(
        image.id,
        image.name,
        sorted(found[1] - found[0]),
        sorted(found[0] - found[1]),
        [index for index, earlier in zip(wrong[1], kept, strict=True) if earlier < 0],
        [index for place, index in enumerate(wrong[0]) if place not in kept],
    )
