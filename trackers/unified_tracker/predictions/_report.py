"""The report: all that the uploader makes of one evaluation of the sample, as files in the run directory.

::

    <run directory>/predictions/
        index.html                        one page, all evaluations of the run
        <digest>.sample, <digest>.predictions   what the training has written
        images/                           the pictures: links where the file system can
        val-000300-<digest>/              one evaluation
            index.html, coco_results.json, predictions.parquet, <figure>.png, evaluation.json

Made once, by the lane that comes first; the other one finds it. Nothing in here runs in the training process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from filelock import FileLock

from unified_tracker._errors import RejectedError, TrackerError
from unified_tracker._rundir import RunDirectory, write_bytes
from unified_tracker._staging import changed, locate
from unified_tracker.predictions import _sheets
from unified_tracker.predictions._analysis import Analysis, analyse, show_sample
from unified_tracker.predictions._annotations import coco_annotations, image_names
from unified_tracker.predictions._coco_results import coco_results_json
from unified_tracker.predictions._document import ClassRow, Document, ShownEvaluation, ShownImage
from unified_tracker.predictions._figures import confusion_figure, curves_figure
from unified_tracker.predictions._originals import Originals
from unified_tracker.predictions._page import read_page, size_without_pictures, write_page
from unified_tracker.predictions._pictures import PAGE_BYTES, Source, fit_pictures
from unified_tracker.predictions._sample import ImageId
from unified_tracker.predictions._sheets import PredictionSheet, SampleSheet
from unified_tracker.predictions._summary import ERRORS, ImageSummary, summarise
from unified_tracker.predictions._writer import FOLDER
from unified_tracker.records import Artifact, Entry, Predictions

PAGE: Final = "index.html"
RESULTS: Final = "coco_results.json"
PREDICTIONS: Final = "predictions.parquet"
TRUTH: Final = "truth.parquet"
EVALUATION: Final = "evaluation.json"  # written last: the rest is there if it is
EVALUATIONS_A_PAGE: Final = 30
# Bytes of a picture, on average: a run has many pages. A photograph of 640x480 takes 16 KiB, so that only larger or
# noisy ones are shrunk.
PICTURE_BYTES: Final = 20 << 10
CLASS_COLUMNS: Final = [
    *("category", "AP", "AP50", "true positives", "false positives", "missed", "precision", "recall"),
    *("recall at precision 0.9", "quality"),
]
IMAGE_COLUMNS: Final = ["image", "F1", "true positives", "false positives", "missed", *ERRORS.values()]


class Table(msgspec.Struct):
    """Columns and rows, as `Run.log_table` takes them."""

    columns: list[str]
    data: list[list[Any]]


class Recorded(msgspec.Struct):
    """`evaluation.json`: an evaluation as the pages show it, and where it belongs: digests of both sheets."""

    sequence: int
    sample: str
    predictions: str
    evaluation: ShownEvaluation


class PredictionReport:
    """One evaluation of the sample, ready to be stored.

    Making one may take as long as encoding the pictures does: seconds for a hundred of them, once a sample.
    """

    def __init__(self, directory: RunDirectory, entry: Entry) -> None:
        """Read what the training has written, and make what is not there yet.

        Raises:
            RejectedError: A file that the training has written is damaged or gone.
        """
        record = entry.record
        assert isinstance(record, Predictions)  # noqa: S101 -- the lane sorts by kind
        self._directory, self._record = directory, record
        self._root = directory.path / FOLDER
        self._originals = Originals(directory.path, self._root / "images")
        for file in (record.sample, record.file):
            if why := changed(directory.path, file):
                raise RejectedError(why)
        self.run = directory.info()
        self.sample_digest = Path(record.sample.staged).stem
        try:
            self.sample: SampleSheet = _sheets.decode_sample(locate(directory.path, record.sample).read_bytes())
            content = locate(directory.path, record.file).read_bytes()
            self.predictions: PredictionSheet = _sheets.decode_predictions(content)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RejectedError(f"the predictions of step {record.step} cannot be read: {error}") from error
        self._predictions_digest = Path(record.file.staged).stem
        both = _sheets.digest(f"{self.sample_digest}{self._predictions_digest}".encode())  # the truth may have changed
        stem = f"{_file_name(record.split)}-{record.step or 0:06d}-{both[:8]}"
        self.folder = self._root / stem
        with FileLock(self._root / ".lock"):
            if not (self.folder / EVALUATION).exists():
                self._make(entry.sequence)

    @cached_property
    def images(self) -> list[ShownImage]:
        """The images with what is true, in the order of the sample, with small pictures."""
        return read_page(self.page).images

    @cached_property
    def evaluation(self) -> ShownEvaluation:
        """The evaluation with matches, kinds and tables; parallel to `images`."""
        return self._recorded(self.folder / EVALUATION).evaluation

    @property
    def page(self) -> Path:
        """This evaluation as one self-contained page."""
        return self.folder / PAGE

    @property
    def overview(self) -> Path:
        """All evaluations of the run as one self-contained page."""
        return self._root / PAGE

    @property
    def figures(self) -> dict[str, Path]:
        """Name to PNG: confusion matrix, precision over recall."""
        return {path.stem: path for path in sorted(self.folder.glob("*.png"))}

    @property
    def files(self) -> Mapping[str, Path]:
        """What the artifact `run-<run id>-predictions` holds: name to file."""
        data = [path for pattern in ("*.parquet", f"*{RESULTS}") for path in self.folder.glob(pattern)]
        return {PAGE: self.page, **{path.name: path for path in sorted(data)}}

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Name to table: the classes of each task, and the images, worst first."""
        tables: dict[str, Table] = {}
        for task, rows in self.evaluation.classes.items():
            suffix = "" if task == "instances" else f"_{task}"
            tables[f"per_class{suffix}"] = Table(CLASS_COLUMNS, [self._class_row(row) for row in rows])
            worst = sorted(summarise(self.images, self.evaluation, task=task), key=lambda each: (each.f1, each.name))
            tables[f"worst_images{suffix}"] = Table(IMAGE_COLUMNS, [_image_row(each) for each in worst])
        return tables

    def _class_row(self, row: ClassRow) -> list[Any]:
        name = "all" if row.label < 0 else self.sample.classes[row.label]
        return [name, *msgspec.to_builtins(row)[1:]]

    @property
    def objects(self) -> int:
        """How many true objects the sample has."""
        return sum(len(each) for image in self.sample.images for each in (image.truth or {}).values())

    @property
    def sample_files(self) -> dict[str, Path]:
        """What the artifact `<dataset>-val` holds: `annotations.json` (COCO) and the pictures, as they were."""
        annotations = self._root / f"{self.sample_digest}.annotations.json"
        names = image_names(self.sample)
        if not annotations.exists():
            write_bytes(annotations, coco_annotations(self.sample, names))
        kept = {f"images/{names[image.id]}": self._originals.find(image) for image in self.sample.images}
        return {"annotations.json": annotations, **{name: path for name, path in kept.items() if path is not None}}

    @property
    def artifact(self) -> Artifact:
        """The record under which a backend stores `files`, that knows nothing of predictions."""
        record = self._record
        metadata = {
            "dataset": self.sample.dataset,
            "sample": self.sample_digest,
            "split": record.split,
            "classes": len(self.sample.classes),
            "images": sum(image is not None for image in self.evaluation.images),
            "score_threshold": self.predictions.score_threshold,
        }
        return Artifact(
            record.ts,
            f"run-{self.run.id}-predictions",
            "result",
            (),
            record.aliases,
            metadata,
            dict(self.predictions.metrics),
            record.step,
            record.epoch,
        )

    def image_file(self, image_id: ImageId) -> Path | None:
        """The original picture of an image; None if it could not be had."""
        return next((self._originals.find(image) for image in self.sample.images if image.id == image_id), None)

    # ---- making ------------------------------------------------------------------------------------------------

    def _make(self, sequence: int) -> None:
        record = self._record
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        analysis = analyse(self.sample, self.predictions)
        evaluation = analysis.show(
            id=self.folder.name,
            label=_label(record),
            run=self.run.id,
            step=record.step,
            epoch=record.epoch,
        )
        self.evaluation = evaluation
        for task in analysis.scores:
            name = RESULTS if task == "instances" else f"{task}_{RESULTS}"
            write_bytes(self.folder / name, coco_results_json(self.sample, self.predictions, task=task))
        self._write_parquet(analysis)
        self._draw(analysis)
        images = self.images = self._shown_images()
        self._write_page([evaluation], images, f"{self.sample.dataset}, {evaluation.label}", self.page)
        recorded = Recorded(sequence, self.sample_digest, self._predictions_digest, evaluation)
        self._write_overview(recorded, images)
        write_bytes(self.folder / EVALUATION, msgspec.json.encode(recorded))

    def _draw(self, analysis: Analysis) -> None:
        classes, threshold = self.sample.classes, self.predictions.score_threshold
        for task, scores in analysis.scores.items():
            suffix = "" if task == "instances" else f"_{task}"
            matrix = confusion_figure(scores.confusion, classes, iou=analysis.ious[0], threshold=threshold)
            write_bytes(self.folder / f"confusion_matrix{suffix}.png", matrix)
            if scores.curves is not None:
                write_bytes(self.folder / f"precision_recall{suffix}.png", curves_figure(scores.curves, classes))

    def _write_parquet(self, analysis: Analysis) -> None:
        try:
            from unified_tracker.predictions._parquet import predictions_parquet, truth_parquet

            tables = {PREDICTIONS: predictions_parquet(analysis), TRUTH: truth_parquet(analysis)}
        except ImportError:  # pyarrow comes with MLflow
            return
        for name, content in tables.items():
            write_bytes(self.folder / name, content)

    def _write_overview(self, new: Recorded, images: list[ShownImage]) -> None:
        """The page of the run: what has been recorded before, and what is new."""
        recorded = [new, *(self._recorded(path) for path in self._root.glob(f"*/{EVALUATION}"))]
        mine = sorted((each for each in recorded if each.sample == self.sample_digest), key=lambda each: each.sequence)
        notes = []
        if others := len(recorded) - len(mine):
            notes.append(f"{others} evaluations of another sample have pages of their own")
        left_out = len(mine) - EVALUATIONS_A_PAGE
        if left_out > 0:
            notes.append(f"{left_out} older evaluations are left out; each has a page of its own")
        evaluations = [each.evaluation for each in mine[-EVALUATIONS_A_PAGE:]]
        name = self.run.name or f"run {self.run.id}"
        self._write_page(evaluations, images, f"{self.sample.dataset}, {name}", self.overview, notes)

    def _shown_images(self) -> list[ShownImage]:
        """The images; with their pictures where a page of the same sample is there already."""
        images = show_sample(self.sample)
        for page in (self.overview, *self._root.glob(f"*/{PAGE}")):
            if page.exists() and (before := read_page(page)).sample == self.sample_digest:
                for image, known in zip(images, before.images, strict=True):
                    image.src, image.why = known.src, known.why
                break
        return images

    def _write_page(
        self,
        evaluations: list[ShownEvaluation],
        images: list[ShownImage],
        title: str,
        target: Path,
        notes: Sequence[str] = (),
    ) -> None:
        """A page; the images are given the pictures that they have not got yet."""
        document = self._document(title, images, evaluations, notes)
        self._fit(document)
        write_page(document, target)

    def _fit(self, document: Document) -> None:
        """Fill in the pictures that are missing, and say why one is."""
        sources: dict[ImageId, Source] = {}
        for shown, image in zip(document.images, self.sample.images, strict=True):
            kept = self._originals.keep(image)
            if isinstance(kept, str):
                shown.why = kept
            elif kept.suffix == ".npy":
                sources[image.id] = np.load(kept, mmap_mode="r", allow_pickle=False)
            else:
                sources[image.id] = kept
        room = size_without_pictures(document) + PICTURE_BYTES * len(document.images)
        fit_pictures(document, sources, min(room, PAGE_BYTES))

    def _document(
        self, title: str, images: list[ShownImage], evaluations: list[ShownEvaluation], notes: Sequence[str]
    ) -> Document:
        sample = self.sample
        return Document(
            title=title,
            dataset=sample.dataset,
            classes=sample.classes,
            category_ids=sample.category_ids,
            images=images,
            evaluations=evaluations,
            keypoint_names=sample.keypoint_names,
            skeleton=sample.skeleton,
            notes=list(notes),
            sample=self.sample_digest,
        )

    @staticmethod
    def _recorded(path: Path) -> Recorded:
        return msgspec.json.decode(path.read_bytes(), type=Recorded)


def page_at(page: Path, iou: float, target: Path) -> Path:
    """The page of a run directory once more, matched at another IoU threshold beside the usual ones.

    Args:
        page: `predictions/index.html` of a run directory, or the page of one evaluation in it.
        iou: The threshold, 0 to 1.
        target: Where to write.

    Raises:
        TrackerError: The page is not in a run directory: the sheets with masks and exact boxes are only there.
    """
    root = next((folder for folder in page.parents if folder.name == FOLDER), None)
    if root is None or not list(root.glob("*.sample")):
        raise TrackerError(f"{page} is not in a run directory: it cannot be matched again")
    document = read_page(page)
    for index, evaluation in enumerate(document.evaluations):
        recorded = msgspec.json.decode((root / evaluation.id / EVALUATION).read_bytes(), type=Recorded)
        sample = _sheets.decode_sample((root / f"{recorded.sample}.sample").read_bytes())
        predictions = _sheets.decode_predictions((root / f"{recorded.predictions}.predictions").read_bytes())
        ious = tuple(dict.fromkeys((iou, *evaluation.ious)))
        again = analyse(sample, predictions, ious).show(
            id=evaluation.id, label=evaluation.label, run=evaluation.run, step=evaluation.step, epoch=evaluation.epoch
        )
        document.evaluations[index] = again
    write_page(document, target)
    return target


def _image_row(summary: ImageSummary) -> list[Any]:
    counts = (summary.true_positives, summary.false_positives, summary.missed)
    return [summary.name, round(summary.f1, 4), *counts, *summary.errors.values()]


def _label(record: Predictions) -> str:
    place = f"iter {record.step}" if record.step is not None else "no step"
    return place if record.epoch is None else f"{place} (epoch {record.epoch:.3g})"


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text)[:80] or "evaluation"
