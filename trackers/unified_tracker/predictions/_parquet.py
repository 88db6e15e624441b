"""Parquet: an analysed evaluation as two tables, for whoever asks questions of his own.

Both hold one row an object, compressed with Zstandard. What they have in common:

    image_id     string   as the data set has it
    image        string   name of the image
    task         string   "instances", "panoptic", "semantic"
    index        int32    of the object in its image and task, as the framework or the data set had it
    category_id  int64    as the data set has it
    category     string   its name
    x1 y1 x2 y2  float64  corners in pixels, exactly as they were given; null without boxes
    rle          string   COCO's compressed run lengths, of the size of the image; null without masks
    keypoints    list     x y v one after the other; null without keypoints

Predictions (`predictions.parquet`), the best of an image first, none left out for its score:

    score        float64  exactly as it was given
    match        int32    `index` of the true object that it found, or of the crowd region that it lies in; else null
    kind         string   "true positive", "background", "wrong class", "badly placed", "duplicate", "ignored"; null if
                          nobody has said what is true
    iou          float64  overlap with its match; else the highest with any true object; null as `kind`

Truth (`truth.parquet`), of the images that were evaluated:

    crowd        bool     a region in which nothing counts as wrong
    prediction   int32    `index` of the prediction that found it; null where it was missed
    score        float64  of that prediction: at a score threshold above it the object is missed

Matches are those at the first IoU threshold of the analysis; the tables' metadata has it as "iou".
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from unified_tracker.predictions._analysis import Analysis
from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._regions import Regions
from unified_tracker.predictions._sheets import ImageSheet, Objects
from unified_tracker.predictions._summary import WORDS
from unified_tracker.predictions._verdicts import Verdict


def predictions_parquet(analysis: Analysis) -> bytes:
    """The content of `predictions.parquet`; pyarrow is needed, which comes with MLflow."""
    rows = _Columns(["score", "match", "kind", "iou"])
    for image, task, verdict in _verdicts(analysis):
        predicted, judged = verdict.predicted, verdict.judged
        objects = analysis.predictions.images[image.id][task]
        rows.add(analysis, image, task, objects, predicted)
        rows.extend("score", [] if objects.scores is None else objects.scores.values()[predicted.order].tolist())
        nothing = [None] * len(predicted)
        matched = nothing
        if judged is not None and verdict.true is not None:
            order = verdict.true.order.tolist()
            matched = [None if true < 0 else order[true] for true in judged.matching.matches[0].tolist()]
        rows.extend("match", matched)
        rows.extend("kind", nothing if judged is None else [WORDS[letter] for letter in judged.matching.kinds[0]])
        rows.extend("iou", nothing if judged is None else judged.matching.overlap.tolist())
    return rows.parquet(analysis)


def truth_parquet(analysis: Analysis) -> bytes:
    """The content of `truth.parquet`; pyarrow is needed, which comes with MLflow."""
    rows = _Columns(["crowd", "prediction", "score"])
    for image, task, verdict in _verdicts(analysis):
        if verdict.true is None or verdict.judged is None or image.truth is None:
            continue
        rows.add(analysis, image, task, image.truth[task], verdict.true)
        matching, predicted = verdict.judged.matching, verdict.predicted
        found = np.flatnonzero((matching.matches[0] >= 0) & ~matching.ignored[0])
        finder = dict(zip(matching.matches[0][found].tolist(), found.tolist(), strict=True))
        finders = [finder.get(index) for index in range(len(verdict.true))]
        rows.extend("crowd", verdict.true.crowd.tolist())
        rows.extend("prediction", [None if index is None else int(predicted.order[index]) for index in finders])
        rows.extend("score", [None if index is None else float(predicted.scores[index]) for index in finders])
    return rows.parquet(analysis)


def _verdicts(analysis: Analysis) -> Iterator[tuple[ImageSheet, Task, Verdict]]:
    for image, verdicts in zip(analysis.sample.images, analysis.images, strict=True):
        for task, verdict in (verdicts or {}).items():
            yield image, task, verdict


class _Columns:
    """Columns that grow image by image."""

    def __init__(self, own: Sequence[str]) -> None:
        common = [
            "image_id",
            "image",
            "task",
            "index",
            "category_id",
            "category",
            "x1",
            "y1",
            "x2",
            "y2",
            "rle",
            "keypoints",
        ]
        self._values: dict[str, list[Any]] = {name: [] for name in [*common, *own]}

    def extend(self, name: str, values: Sequence[Any]) -> None:
        self._values[name] += values

    def add(self, analysis: Analysis, image: ImageSheet, task: Task, objects: Objects, regions: Regions) -> None:
        """What both tables have, in the order of the regions."""
        count, nothing = len(regions), [None] * len(regions)
        labels = regions.labels.tolist()
        self.extend("image_id", [str(image.id)] * count)
        self.extend("image", [image.name] * count)
        self.extend("task", [task] * count)
        self.extend("index", regions.order.tolist())
        self.extend("category_id", [analysis.sample.category_ids[label] for label in labels])
        self.extend("category", [analysis.sample.classes[label] for label in labels])
        corners = None if objects.boxes is None else objects.boxes.values()[regions.order].T.tolist()
        for place, name in enumerate(("x1", "y1", "x2", "y2")):
            self.extend(name, nothing if corners is None else corners[place])
        masks = regions.masks
        self.extend("rle", nothing if masks is None else [mask["counts"].decode("ascii") for mask in masks])
        given = None if objects.keypoints is None or not count else objects.keypoints.values()[regions.order]
        self.extend("keypoints", nothing if given is None else given.reshape(count, -1).tolist())

    def parquet(self, analysis: Analysis) -> bytes:
        import pyarrow as pa
        from pyarrow import parquet

        numbers = {"index": pa.int32(), "match": pa.int32(), "prediction": pa.int32(), "category_id": pa.int64()}
        types = {
            **numbers,
            **dict.fromkeys(("x1", "y1", "x2", "y2", "score", "iou"), pa.float64()),
            "keypoints": pa.list_(pa.float64()),
            "crowd": pa.bool_(),
        }
        schema = pa.schema(
            [(name, types.get(name, pa.string())) for name in self._values],
            metadata={"iou": str(analysis.ious[0]), "dataset": analysis.sample.dataset},
        )
        content = io.BytesIO()
        parquet.write_table(pa.table(self._values, schema=schema), content, compression="zstd")
        return content.getvalue()
