"""The summary of an image: what is right and wrong there, at one IoU threshold and one score threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from unified_tracker.predictions import _document as kinds
from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._document import ShownEvaluation, ShownImage, ShownObjects
from unified_tracker.predictions._sample import ImageId

ERRORS: Final = {
    kinds.BACKGROUND: "background",
    kinds.WRONG_CLASS: "wrong class",
    kinds.BADLY_PLACED: "badly placed",
    kinds.DUPLICATE: "duplicate",
}
"""Letters of the predictions that count as wrong, and how people call them."""
WORDS: Final = {kinds.TRUE_POSITIVE: "true positive", **ERRORS, kinds.IGNORED: "ignored"}
"""All letters."""


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """One image and task, predictions below the score threshold left aside.

    Attributes:
        true_positives, false_positives, missed: Counts; crowd regions and what lies in them do not count.
        errors: Word of the kind to the number of such false positives, all four kinds.
        f1: 2 TP / (2 TP + FP + missed), 0 to 1; 1 where there is nothing and nothing was predicted.
    """

    id: ImageId
    name: str
    true_positives: int
    false_positives: int
    missed: int
    errors: dict[str, int]

    @property
    def f1(self) -> float:
        counted = 2 * self.true_positives + self.false_positives + self.missed
        return 2 * self.true_positives / counted if counted else 1.0


def summarise(
    images: list[ShownImage],
    evaluation: ShownEvaluation,
    *,
    task: Task = "instances",
    iou: int = 0,
    threshold: float | None = None,
) -> list[ImageSummary]:
    """Summaries of the images that were evaluated and of which somebody has said what is true, in their order.

    Args:
        images: Of the document.
        evaluation: One of its evaluations.
        task: What was asked of the model.
        iou: Index into the evaluation's IoU thresholds.
        threshold: Lowest score that counts; default: the evaluation's.
    """
    least = evaluation.threshold if threshold is None else threshold
    summaries = []
    for image, predictions in zip(images, evaluation.images, strict=True):
        true, predicted = (image.truth or {}).get(task), (predictions or {}).get(task)
        if true is not None and predicted is not None:
            letters = [letter for _, letter in shown_letters(predicted, iou, least)]
            errors = {word: letters.count(letter) for letter, word in ERRORS.items()}
            right = letters.count(kinds.TRUE_POSITIVE)
            missed = len(true.l) - len(true.c) - right
            summaries.append(ImageSummary(image.id, image.name, right, sum(errors.values()), missed, errors))
    return summaries


def shown_letters(predicted: ShownObjects, iou: int, threshold: float) -> list[tuple[int, str]]:
    """Index and kind of the predictions that score at least the threshold."""
    return [
        (index, letter)
        for index, (letter, score) in enumerate(zip(predicted.e[iou], predicted.s, strict=True))
        if score >= threshold
    ]
