"""The document: what a page of predictions shows, and all that can be read back from it.

One JSON object, embedded in the page, whole: the page needs nothing else, and `predictions show|diff` read it from
there. Field names are short because they stand there once an image; columns instead of objects for the same reason.
"""

from __future__ import annotations

from typing import Final

import msgspec

from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._sample import ImageId

VERSION: Final = 1

# What a prediction is, at one IoU threshold and looked at with all others that score higher.
TRUE_POSITIVE: Final = "t"
BACKGROUND: Final = "b"  # nothing there, or nothing that fits by class and place
WRONG_CLASS: Final = "c"  # an object of another class is there
BADLY_PLACED: Final = "l"  # the right class, but the overlap is below the threshold
DUPLICATE: Final = "d"  # the object has been found already, with a higher score
IGNORED: Final = "i"  # in a crowd region: neither right nor wrong
# An object that no prediction matches is missed.


class ShownObjects(msgspec.Struct, omit_defaults=True):
    """Objects of one image and task, as columns of n values, best score first where there are scores.

    Attributes:
        l: Labels.
        b: Boxes, x1 y1 x2 y2 one after the other (4 n numbers), in pixels of the original image; empty without boxes.
        m: Compressed run-length counts of the masks (COCO), of the size of the original image; empty without masks.
        k: Keypoints, x y v one after the other, a list an object; empty without keypoints.
        c: Indices of crowd regions.
        s: Scores. Only predictions have this and what follows.
        g: For each IoU threshold n indices of the true object that a prediction matches, or -1.
        e: For each IoU threshold n letters, what the prediction is (`TRUE_POSITIVE`, ...).
        o: n highest overlaps (IoU, 0 to 1) with what it was compared with: its match, else any true object.
    """

    l: list[int] = []  # noqa: E741 -- see above
    b: list[float] = []
    m: list[str] = []
    k: list[list[float]] = []
    c: list[int] = []
    s: list[float] = []
    g: list[list[int]] = []
    e: list[str] = []
    o: list[float] = []


class ShownImage(msgspec.Struct, omit_defaults=True):
    """An image of the sample.

    Attributes:
        name: What people see; may contain anything.
        width, height: Of the original, in pixels: what boxes and masks are meant in.
        src: Data URI of the picture, smaller than the original as a rule; "" if there is none.
        why: Why there is none.
        truth: Task to true objects; None if nobody has said.
    """

    id: ImageId
    name: str
    width: int
    height: int
    src: str = ""
    why: str = ""
    truth: dict[Task, ShownObjects] | None = None


class ClassRow(msgspec.Struct, array_like=True):
    """One class in the table of an evaluation, on the images of the sample.

    Attributes:
        label: Index of the class; -1 for all classes together.
        ap, ap50: Average precision of COCO (IoU 0.5 to 0.95; 0.5), 0 to 1; None where there is nothing to find.
        true_positives, false_positives, missed: Counts at IoU 0.5 and the evaluation's score threshold.
        precision, recall: From these; None where undefined.
        recall_at_precision: Highest recall at which the precision is at least 0.9, at IoU 0.5; None without objects.
        quality: What the task is judged by beside AP, 0 to 1: PQ of panoptic segments, IoU over all pixels of semantic
            regions (neither has AP), AP by OKS of instances with keypoints; else None.
    """

    label: int
    ap: float | None
    ap50: float | None
    true_positives: int
    false_positives: int
    missed: int
    precision: float | None
    recall: float | None
    recall_at_precision: float | None
    quality: float | None = None


class ShownEvaluation(msgspec.Struct, omit_defaults=True):
    """One evaluation of the sample.

    Attributes:
        id: Unique in the document.
        label: What people see: "iter 300", "epoch 3".
        run: Id of the run.
        split: "val" or "test".
        threshold: Score at which the view starts.
        ious: IoU thresholds for which matches were computed, the first is the usual one.
        metrics: Of the evaluation, by canonical name.
        images: As many as the document has, in its order: task to predictions; None if the image was not evaluated.
        classes: Task to rows.
        confusion: Task to the confusion matrix at the first IoU threshold and the score threshold: rows are true
            classes and then background, columns predicted classes and then background (missed).
    """

    id: str
    label: str
    run: str
    split: str
    step: int | None
    epoch: float | None
    threshold: float
    ious: list[float]
    metrics: dict[str, float] = {}
    images: list[dict[Task, ShownObjects] | None] = []
    classes: dict[Task, list[ClassRow]] = {}
    confusion: dict[Task, list[list[int]]] = {}


class ShownTable(msgspec.Struct, omit_defaults=True):
    """A table of numbers as it is to be shown.

    Attributes:
        columns: The first one names the rows.
        rows: As many values each.
    """

    title: str
    columns: list[str]
    rows: list[list[str | int | float | None]]


class Document(msgspec.Struct, omit_defaults=True):
    """Everything that one page shows.

    Attributes:
        title: What stands above the page.
        classes: Class names by label; may contain anything.
        category_ids: The data set's own ids of the classes.
        keypoint_names, skeleton: As in `ValidationSample`.
        evaluations: Oldest first. With several, what got fixed and what broke between two is shown. Without any, the
            page is that of a data set: what is true, and no word of scores and errors.
        notes: Sentences for the user, such as why older evaluations are left out.
        comparing: The page opens with the last evaluation compared with the one before it.
        sample: Digest of the sample: with the same one, images and pictures are the same.
        tables: Statistics of a data set.
    """

    title: str
    dataset: str
    classes: list[str]
    category_ids: list[int]
    images: list[ShownImage]
    evaluations: list[ShownEvaluation]
    keypoint_names: list[str] = []
    skeleton: list[tuple[int, int]] = []
    notes: list[str] = []
    comparing: bool = False
    sample: str = ""
    tables: list[ShownTable] = []
    version: int = VERSION
