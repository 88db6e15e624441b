"""Predictions: what a model in evaluation mode says about the sample, handed to the collector while it goes on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.evaluation.testing import flatten_results_dict
from torch.nn.parallel import DataParallel, DistributedDataParallel

from unified_tracker._console import say
from unified_tracker.predictions import SampleEvaluation, SampleImage
from unified_tracker.predictions._collector import Ranks, SampleCollector
from unified_tracker.predictions._sample import ImageId
from unified_tracker_detectron2._dataset import CatalogDataset
from unified_tracker_detectron2._detections import ClassList, detections_from_output

Observer = Callable[[Any, Any], None]


class UnknownDataset:
    """A data set that nobody has named: a training of LazyConfig or of a plain loop that does not say its own."""

    def __init__(self) -> None:
        self.name = self.registered = "validation"
        self.classes: Sequence[str] = ()
        self.category_ids: Sequence[int] | None = None
        self.keypoint_names: Sequence[str] = ()
        self.skeleton: Sequence[tuple[int, int]] = ()
        self.class_list = ClassList((), ())
        self.divisor = 1000

    def ids(self) -> None:
        """Nobody knows."""

    def keep(self, chosen: Collection[ImageId]) -> None:
        """Never called."""

    def is_about(self, image_id: ImageId, given: Mapping[str, Any]) -> bool:
        """Every image is one of its."""
        return True

    def image(self, image_id: ImageId) -> SampleImage:
        """Never called."""
        raise KeyError(image_id)


class _Watched(NamedTuple):
    dataset: CatalogDataset | UnknownDataset
    collector: SampleCollector


class EvaluationWatch:
    """Takes from a model's inputs and outputs what is about the sample, on every rank. One sample for each data set.

    The data sets are named as in the catalog. Without names, predictions are recorded without what is true.

    Blocking: the first evaluation loads the data sets once more (COCO val: a second), and on rank 0 reads the
    annotations of the sample. Afterwards an image outside the sample costs a look-up, one of the sample the encoding of
    its masks.
    """

    def __init__(self, names: Sequence[str], ranks: Ranks, count: int, score_threshold: float) -> None:
        ranks.clear()
        self._names, self._ranks, self._count, self._threshold = names, ranks, count, score_threshold
        self._watched: list[_Watched] | None = None
        self._evaluation: str | None = None

    def see(self, evaluation: str, inputs: Any, outputs: Any) -> None:
        """What the model says about a batch.

        Args:
            evaluation: Different for each evaluation, and equal on all ranks; goes into file names.
            inputs: As a Detectron2 data loader gives them; anything else is passed over.
            outputs: As a Detectron2 model returns them.
        """
        if not _is_batch(inputs) or not _is_batch(outputs):
            return
        if self._watched is None:
            self._watched = list(self._watch())
        if evaluation != self._evaluation:
            self._evaluation = evaluation
            for number, (_, collector) in enumerate(self._watched):
                collector.begin(f"{evaluation}-{number}")
        for given, output in zip(inputs, outputs, strict=False):
            self._see_image(self._watched, given, output)

    def end(self, evaluation: str, split: str, metrics: Mapping[str, float]) -> list[SampleEvaluation]:
        """The evaluation is over, on all ranks: what is known of each data set. Rank 0 only.

        Args:
            evaluation: As in `see`; another one than was seen last gives nothing.
            split: "val" or "test".
            metrics: By canonical name. Where several data sets are evaluated, Detectron2 puts their names into it.
        """
        if self._watched is None or evaluation != self._evaluation:
            return []
        self._evaluation = None
        several = len(self._watched) > 1
        found = []
        for dataset, collector in self._watched:
            prefix = f"{split}/{dataset.registered}/" if several else ""
            its_own = {name: value for name, value in metrics.items() if name.startswith(prefix)}
            if (evaluated := collector.collect(split, its_own)) is not None:
                found.append(evaluated)
        return found

    def _watch(self) -> Iterator[_Watched]:
        """Every data set that can be loaded."""
        for name in self._names or (None,):
            try:
                dataset: CatalogDataset | UnknownDataset = UnknownDataset() if name is None else CatalogDataset(name)
                collector = SampleCollector(dataset, self._count, self._ranks, score_threshold=self._threshold)
            except Exception as error:  # noqa: BLE001, PERF203 -- a failure must not be repeated with every batch
                say(f"no predictions of {name}: {type(error).__name__}: {error}")
            else:
                yield _Watched(dataset, collector)

    @staticmethod
    def _see_image(watched: list[_Watched], given: Any, output: Any) -> None:
        image_id = given.get("image_id", given.get("file_name"))
        for dataset, collector in watched:
            if collector.wants(image_id) and dataset.is_about(image_id, given):
                height, width = given.get("height"), given.get("width")
                if height is None or width is None:
                    height, width = output["instances"].image_size
                find = functools.partial(detections_from_output, output, dataset.class_list, dataset.divisor)
                collector.add(image_id, find, int(height), int(width), given.get("file_name"))
                return


@dataclass
class EvaluationResults:
    """Takes what an evaluation found.

    Attributes:
        step: Completed iterations of the weights.
        results: As Detectron2's evaluators return them: task to metric to value, under the names of the data sets if
            there are several; None or empty on the other ranks.
    """

    step: int
    results: Mapping[str, Any] | None = None

    def scalars(self) -> dict[str, float]:
        """The results under Detectron2's own flat names: "bbox/AP"."""
        return {name: float(value) for name, value in flatten_results_dict(self.results or {}).items()}


class ModelListener:
    """Hears what a model is given and returns while it is in evaluation mode."""

    def __init__(self, model: torch.nn.Module, observer: Observer) -> None:
        """Begin to listen.

        Args:
            model: The model that is evaluated. What wraps it is looked through: some scripts evaluate the wrapped one.
            observer: Called with a batch and what the model returns for it.
        """
        while isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        self._observer: Observer | None = observer
        self._handle = model.register_forward_hook(self)

    def __call__(self, model: torch.nn.Module, arguments: tuple[Any, ...], outputs: Any) -> None:
        """What PyTorch calls after each forward pass."""
        if not model.training and self._observer is not None and arguments:
            self._observer(arguments[0], outputs)

    def stop(self) -> None:
        """Listen no more."""
        self._handle.remove()
        self._observer = None

    def __deepcopy__(self, memo: Any) -> ModelListener:
        return self  # a copy of the model (EMA) is heard as well, and does not drag the trainer along

    def __reduce__(self) -> tuple[Any, ...]:
        # What a pickled model becomes elsewhere must not need this package: something that takes anything and does
        # nothing.
        return getattr, (contextlib.nullcontext(), "__exit__")


def _is_batch(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, dict) for each in value)
