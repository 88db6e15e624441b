"""What a run directory holds about predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unified_tracker._journal import JournalReader
from unified_tracker._rundir import find_runs
from unified_tracker.predictions import _sheets
from unified_tracker.predictions._sample import ImageId
from unified_tracker.predictions._sheets import Objects, PredictionSheet, SampleSheet
from unified_tracker.records import Predictions


class Recorded(NamedTuple):
    """One evaluation of the sample."""

    record: Predictions
    sample: SampleSheet
    sheet: PredictionSheet

    @property
    def objects(self) -> Mapping[ImageId, Objects]:
        """Instances, image by image."""
        return {image_id: tasks["instances"] for image_id, tasks in self.sheet.images.items()}

    def results(self) -> list[dict[str, Any]]:
        """COCO results, in the order of the images' ids."""
        rows = []
        for image_id, found in sorted(self.objects.items()):
            assert found.boxes is not None and found.scores is not None
            masks = found.masks or [None] * len(found)
            columns = (found.labels.values(), found.boxes.values(), found.scores.values(), masks)
            for label, box, score, mask in zip(*columns, strict=True):
                row = {"image_id": image_id, "category_id": self.sample.category_ids[label], "score": float(score)}
                row["bbox"] = [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
                rows.append(row | ({} if mask is None else {"segmentation": mask.decode()}))
        return rows


def recorded(output: Path) -> list[Recorded]:
    """The evaluations of the only run below a folder, in the order in which they were logged."""
    (directory,) = find_runs(output)
    reader = JournalReader(directory.path / "journal")
    found = []
    for record in (entry.record for entries in iter(lambda: reader.read(final=True), []) for entry in entries):
        if isinstance(record, Predictions):
            sample = _sheets.decode_sample((directory.path / record.sample.staged).read_bytes())
            sheet = _sheets.decode_predictions((directory.path / record.file.staged).read_bytes())
            found.append(Recorded(record, sample, sheet))
    return found
