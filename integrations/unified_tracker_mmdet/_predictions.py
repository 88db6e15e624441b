"""Predictions: what a runner's evaluations say about the sample, handed to the collector while they go on."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.runner import Runner

from unified_tracker.predictions import SampleEvaluation
from unified_tracker.predictions._collector import Ranks, SampleCollector
from unified_tracker_mmdet._dataset import EvaluatedDataset
from unified_tracker_mmdet._detections import detections_from_sample
from unified_tracker_mmdet._references import on_disk


class EvaluationWatch:
    """Watches validations and tests of one runner, on every rank.

    Blocking: the first evaluation of a data set reads its ids, 20 to 100 µs an image, and on rank 0 the annotations of
    the sample. Afterwards an image outside the sample costs a look-up, one of the sample the encoding of its masks.
    """

    def __init__(self, runner: Runner, folder: Path, count: int, score_threshold: float) -> None:
        self._ranks = Ranks(folder, runner.rank, runner.world_size)
        self._ranks.clear()
        self._count, self._threshold = count, score_threshold
        self._watched: dict[str, tuple[Any, EvaluatedDataset, SampleCollector]] = {}
        self._now: tuple[EvaluatedDataset, SampleCollector] | None = None
        self._number = 0

    def begin(self, runner: Runner, split: str) -> None:
        """A validation or test begins; split is "val" or "test"."""
        loader = runner.val_dataloader if split == "val" else runner.test_dataloader
        dataset = getattr(loader, "dataset", None)
        self._now = None
        self._number += 1  # as on all other ranks: all of them evaluate
        if split not in self._watched or self._watched[split][0] is not dataset:
            known = EvaluatedDataset(dataset)
            collector = SampleCollector(known, self._count, self._ranks, score_threshold=self._threshold)
            self._watched[split] = dataset, known, collector
        _, known, collector = self._watched[split]
        collector.begin(f"{runner.timestamp}-{self._number}")
        self._now = known, collector

    def see(self, outputs: Any) -> None:
        """What the model says about a batch."""
        if self._now is None or not isinstance(outputs, Sequence):
            return
        dataset, collector = self._now
        for sample in outputs:
            image_id = dataset.id_of(sample) if hasattr(sample, "metainfo") else None
            if image_id is not None and collector.wants(image_id):
                height, width = sample.get("ori_shape")[:2]
                found = functools.partial(detections_from_sample, sample, len(dataset.classes))
                path = sample.get("img_path")
                collector.add(image_id, found, int(height), int(width), None if path is None else on_disk(str(path)))

    def end(self, split: str, metrics: Mapping[str, float]) -> SampleEvaluation | None:
        """The evaluation is over, on all ranks. Rank 0 only; None if nothing of the sample was seen."""
        if self._now is None:
            return None
        _, collector = self._now
        self._now = None
        return collector.collect(split, metrics)
