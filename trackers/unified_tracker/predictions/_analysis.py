"""The analysis: from the sheets of a sample and of predictions on it to what a document shows.

Computed by the uploader and by the command line, never in the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._document import ShownEvaluation, ShownImage, ShownObjects
from unified_tracker.predictions._regions import Floats, Regions
from unified_tracker.predictions._scores import TaskScores, score
from unified_tracker.predictions._sheets import ImageSheet, PredictionSheet, SampleSheet
from unified_tracker.predictions._verdicts import Verdict, judge

IOUS: Final = (0.5, 0.75)
MOST_CONFUSED: Final = 250  # classes; LVIS' 1,203 would be 3 MB of zeros an evaluation


@dataclass(frozen=True, slots=True)
class Analysis:
    """One evaluation of a sample, compared with what is true.

    Attributes:
        ious: IoU thresholds to look at, the usual one first.
        images: As many as the sample has, in its order; None for those that were not evaluated.
        scores: Task to what was computed over all images; tasks without any truth are not there.
    """

    sample: SampleSheet
    predictions: PredictionSheet
    ious: tuple[float, ...]
    images: list[dict[Task, Verdict] | None]
    scores: dict[Task, TaskScores]

    def show(self, *, id: str, label: str, run: str, step: int | None, epoch: float | None) -> ShownEvaluation:  # noqa: A002
        """As a document has it; the arguments are those of `ShownEvaluation`.

        Metrics of the evaluation stand beside those computed here (`TaskScores`); JSON has no NaN, so none are there.
        With more than 250 classes the confusion matrix is left out.
        """
        metrics = {name: value for each in self.scores.values() for name, value in each.metrics.items()}
        metrics.update(self.predictions.metrics)
        with_confusion = len(self.sample.classes) <= MOST_CONFUSED
        return ShownEvaluation(
            id=id,
            label=label,
            run=run,
            split=self.predictions.split,
            step=step,
            epoch=epoch,
            threshold=self.predictions.score_threshold,
            ious=list(self.ious),
            metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
            images=[
                None if image is None else {task: _show_predicted(each, len(self.ious)) for task, each in image.items()}
                for image in self.images
            ],
            classes={task: each.rows for task, each in self.scores.items()},
            confusion={task: each.confusion.tolist() for task, each in self.scores.items() if with_confusion},
        )


def analyse(sample: SampleSheet, predictions: PredictionSheet, ious: Sequence[float] = IOUS) -> Analysis:
    """Compare all images, and compute what tables and figures show.

    An image counts for a task where somebody has said what is true, and the model has been asked.

    Args:
        sample: The images.
        predictions: Images that are not in the sample are left aside.
        ious: IoU thresholds to look at, above 0 and at most 1, the usual one first; at least one.
    """
    threshold, classes = predictions.score_threshold, len(sample.classes)
    images: list[dict[Task, Verdict] | None] = [
        _judge_image(image, predictions, ious, classes) if image.id in predictions.images else None
        for image in sample.images
    ]
    by_task: dict[Task, list[Verdict]] = {}
    for image in images:
        for task, verdict in (image or {}).items():
            if verdict.judged is not None:
                by_task.setdefault(task, []).append(verdict)
    scores = {
        task: score(verdicts, task, ious, threshold=threshold, classes=classes) for task, verdicts in by_task.items()
    }
    return Analysis(sample, predictions, tuple(ious), images, scores)


def show_sample(sample: SampleSheet) -> list[ShownImage]:
    """The images of a sample with what is true, in its order; `src` is empty."""
    shown = []
    for image in sample.images:
        truth: dict[Task, ShownObjects] | None = None
        if image.truth is not None:
            truth = {
                task: _show(Regions.of(each, image.height, image.width), scores=False)
                for task, each in image.truth.items()
            }
        shown.append(ShownImage(image.id, image.name, image.width, image.height, truth=truth))
    return shown


def show_evaluation(
    sample: SampleSheet,
    predictions: PredictionSheet,
    *,
    id: str,  # noqa: A002 -- as `ShownEvaluation` has it
    label: str,
    run: str,
    step: int | None,
    epoch: float | None,
    ious: Sequence[float] = IOUS,
) -> ShownEvaluation:
    """`analyse` and `Analysis.show` in one; whoever needs tables and figures too keeps the analysis."""
    return analyse(sample, predictions, ious).show(id=id, label=label, run=run, step=step, epoch=epoch)


def _judge_image(
    image: ImageSheet, predictions: PredictionSheet, ious: Sequence[float], classes: int
) -> dict[Task, Verdict]:
    verdicts: dict[Task, Verdict] = {}
    for task, objects in predictions.images[image.id].items():
        predicted = Regions.of(objects, image.height, image.width)
        truth = None if image.truth is None else image.truth.get(task)
        if truth is None:
            verdicts[task] = Verdict(predicted)
        else:
            true = Regions.of(truth, image.height, image.width)
            threshold = predictions.score_threshold
            verdicts[task] = judge(predicted, true, task, ious, threshold=threshold, classes=classes)
    return verdicts


def _show_predicted(verdict: Verdict, ious: int) -> ShownObjects:
    shown = _show(verdict.predicted, scores=True)
    if verdict.judged is not None:
        matching = verdict.judged.matching
        shown.g = matching.matches[:ious].tolist()
        shown.e = matching.kinds[:ious]
        shown.o = np.round(matching.overlap, 3).tolist()
    return shown


def _show(regions: Regions, *, scores: bool) -> ShownObjects:
    boxes = np.concatenate([regions.boxes[:, :2], regions.boxes[:, :2] + regions.boxes[:, 2:]], 1)
    keypoints = regions.keypoints
    return ShownObjects(
        l=regions.labels.tolist(),
        b=np.round(boxes, 1).reshape(-1).tolist() if regions.with_boxes else [],
        m=[mask["counts"].decode("ascii") for mask in regions.masks or []],
        k=[] if keypoints is None else np.round(keypoints, 2).reshape(len(regions), -1).tolist(),
        c=np.flatnonzero(regions.crowd).tolist(),
        s=_round_down(regions.scores).tolist() if scores else [],
    )


def _round_down(scores: Floats) -> Floats:
    """To four decimals, so that what is below a threshold of so many decimals stays below it."""
    nearest = np.round(scores, 4)
    return np.where(nearest > scores, np.round(nearest - 1e-4, 4), nearest)
