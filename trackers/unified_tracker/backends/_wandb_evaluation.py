"""One evaluation as W&B has it: a table of its images, worst first, and what else its artifact holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unified_tracker.backends import _wandb_values as values
from unified_tracker.backends._wandb_images import MISSED, PREDICTIONS, LayeredImage, Names
from unified_tracker.backends._wandb_objects import TaskObjects
from unified_tracker.backends._wandb_sample import Sample, layered, note
from unified_tracker.backends._wandb_store import Store
from unified_tracker.backends._wandb_tables import SUFFIX, ImageColumn, Kind, Table, identifiers
from unified_tracker.backends._wandb_versions import Draft, Reference
from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._document import ShownObjects
from unified_tracker.predictions._sample import ImageId
from unified_tracker.predictions._summary import ERRORS, ImageSummary, summarise
from unified_tracker.records import Artifact

if TYPE_CHECKING:
    from unified_tracker.predictions._report import PredictionReport

EVALUATION: Final = "eval_data"  # as in MMDetection 2.x, like the first three columns
COUNTS: Final = (
    *("f1", "true_positives", "false_positives", "missed"),
    *(word.replace(" ", "_") for word in ERRORS.values()),
)


@dataclass(frozen=True)
class Prepared:
    """One evaluation, as it is to be logged.

    Attributes:
        tables: Name in the artifact to the table, without its pictures.
    """

    sequence: int
    draft: Draft
    tables: dict[str, Table]


def prepare(sequence: int, report: PredictionReport, sample: Sample, store: Store) -> Prepared:
    """The version of `run-<run id>-predictions` for one evaluation; the same whenever it is made."""
    table, masks = _evaluation_table(report, sample, store)
    tables = {EVALUATION: table, **_class_tables(report)}
    files = {**report.files, **masks}
    references: dict[str, Reference] = {}
    for path in sample.named():
        files.pop(path, None)
        if sample.files:
            files[path] = sample.files[path]
        else:
            references[path] = sample.version.reference(path)
    files |= {name + SUFFIX: store.put(each.encode(), SUFFIX).file for name, each in tables.items()}
    record = report.artifact
    aliases = (*record.aliases, *_step_alias(record))
    draft = Draft(
        record.name or "", record.type, files, references, values.metadata(record), tuple(dict.fromkeys(aliases))
    )
    return Prepared(sequence, draft, tables)


def _evaluation_table(report: PredictionReport, sample: Sample, store: Store) -> tuple[Table, dict[str, Path]]:
    """The table, and the files of its masks."""
    evaluation, names, column = report.evaluation, Names.of(report.sample), ImageColumn()
    tasks = list(dict.fromkeys(task for image in evaluation.images for task in image or {}))
    kind, ids = identifiers([image.id for image in report.sample.images])
    counts: dict[str, Kind] = {_counted(task, tasks, name): "number" for task in tasks for name in COUNTS}
    images: dict[str, Kind] = {"ground_truth": "image-file", "prediction": "image-file"}
    columns: dict[str, Kind] = {"image_name": "string", **images, "image_id": kind, **counts, "note": "string"}
    table = Table(columns, {"ground_truth": sample.column, "prediction": column})
    summaries = {task: _summaries(report, task) for task in tasks}
    files: dict[str, Path] = {}
    ranked: list[tuple[tuple[float, ...], dict[str, Any]]] = []
    for position, (image, found, cell) in enumerate(zip(report.images, evaluation.images, sample.cells, strict=True)):
        if found is None:
            continue  # it was not evaluated
        layers = LayeredImage(image.height, image.width, names, column, store)
        for task, true, predicted in _pairs(report, position, found):
            _add_layers(layers, task, true, predicted, evaluation.threshold)
        files |= {path: mask.file for path, mask in layers.mask_files.items()}
        bare = {key: value for key, value in cell.items() if key not in {"boxes", "masks"}}
        row = {"image_name": image.name, "image_id": ids[position], "ground_truth": cell}
        row |= {"prediction": bare | layered(layers), "note": note(cell.get("caption", ""), layers.left_out)}
        mine = {task: summaries[task][image.id] for task in found if image.id in summaries[task]}
        for task, summary in mine.items():
            row |= {_counted(task, tasks, name): value for name, value in _numbers(summary).items()}
        worst = min(((each.f1, -each.false_positives - each.missed) for each in mine.values()), default=(2.0, 0))
        ranked.append(((*worst, position), row))
    for _, row in sorted(ranked, key=lambda each: each[0]):
        table.add(row)
    return table, files


def _pairs(
    report: PredictionReport, position: int, found: Mapping[Task, ShownObjects]
) -> Iterator[tuple[Task, TaskObjects | None, TaskObjects]]:
    """What is true in an image (None if nobody has said it) and what was predicted, a task after the other."""
    image, packed = report.images[position], report.sample.images[position]
    for task, shown in found.items():
        known, truth = (image.truth or {}).get(task), (packed.truth or {}).get(task)
        true = None
        if known is not None and truth is not None:
            true = TaskObjects.of(known, truth, image.height, image.width)
        yield task, true, TaskObjects.of(shown, report.predictions.images[image.id][task], image.height, image.width)


def _add_layers(
    layers: LayeredImage, task: Task, true: TaskObjects | None, predicted: TaskObjects, threshold: float
) -> None:
    layers.add_masks(PREDICTIONS, task, predicted, predicted.above(threshold))
    if task != "instances":  # a region is its mask
        return
    layers.add_predictions(predicted, threshold)
    if true is not None:
        layers.add_truth(true, MISSED, true.missed_by(predicted, threshold))


def _summaries(report: PredictionReport, task: Task) -> dict[ImageId, ImageSummary]:
    return {each.id: each for each in summarise(report.images, report.evaluation, task=task)}


def _numbers(summary: ImageSummary) -> dict[str, float]:
    """The columns of a summary."""
    counts = {name: getattr(summary, name) for name in COUNTS[:4]}
    return counts | {word.replace(" ", "_"): count for word, count in summary.errors.items()}


def _counted(task: Task, tasks: list[Task], name: str) -> str:
    """Column of a count: plain for the first task, behind the task's name for others."""
    return name if task == tasks[0] else f"{task}_{name}"


def _class_tables(report: PredictionReport) -> dict[str, Table]:
    """The report's tables of classes. Its worst images are what the table of images begins with."""
    tables = {}
    for name, given in report.tables.items():
        if name.startswith("per_class"):
            first, *numbers = given.columns
            kinds: dict[str, Kind] = {first: "string", **dict.fromkeys(numbers, "number")}
            table = tables[name] = Table(kinds)
            for row in given.data:
                table.add(dict(zip(given.columns, row, strict=True)))
    return tables


def _step_alias(record: Artifact) -> tuple[str, ...]:
    """Where in the training a version is from, if no alias says it."""
    if record.step is None or any(alias.startswith(("iter_", "epoch_")) for alias in record.aliases):
        return ()
    return (f"iter_{record.step}",)
