"""The collector: what a model says about the sample during one evaluation, gathered from all ranks.

The one pipeline of both adapters; it knows no framework and makes no collective call. Every rank packs what it sees of
the sample at once; a rank above 0 puts it into a file beside the run directories before the framework's own gathering
collective, so that rank 0 finds it there after that collective.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from unified_tracker._console import say
from unified_tracker.predictions._detections import TaskDetections
from unified_tracker.predictions._sample import (
    ImageId,
    SampleEvaluation,
    SampleImage,
    ValidationSample,
    choose_images,
)
from unified_tracker.predictions._sheets import TaskObjects, by_task, pack_tasks

PREFIX: Final = ".predictions"
LENGTH_BYTES: Final = 4
MOST_CLASSES: Final = 1 << 20  # where nobody knows how many there are


class SampleSource(Protocol):
    """A data set as an adapter sees it.

    Attributes:
        name: What the sample is named after.
        classes: Class names, in the order of the labels; empty if nobody knows them: they are numbered then.
        category_ids: The data set's own ids of the classes; None for 1, 2, 3, ...
        keypoint_names, skeleton: As in `ValidationSample`.
    """

    name: str
    classes: Sequence[str]
    category_ids: Sequence[int] | None
    keypoint_names: Sequence[str]
    skeleton: Sequence[tuple[int, int]]

    def ids(self) -> Collection[Any] | None:
        """Image ids, all of one type. Called once, on every rank.

        None if nobody knows them. Then the sample is chosen from the images that come, the same ones each time, and
        nothing is known to be true about it.
        """
        ...

    def keep(self, chosen: Collection[ImageId]) -> None:
        """Called once: of the other images nothing is wanted any more."""
        ...

    def image(self, image_id: ImageId) -> SampleImage:
        """One of the chosen images, with what is true about it. Called once for each, on rank 0."""
        ...


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which process this is, and where it meets the others.

    Attributes:
        rank, world_size: Of all processes of the training.
        folder: Beside the run directories: a path that every rank knows without asking. Where ranks share no disk,
            only what is on the disk of rank 0 is recorded.
    """

    folder: Path
    rank: int = 0
    world_size: int = 1

    def part(self, evaluation: str, rank: int) -> Path:
        """The file in which a rank leaves what it has seen in an evaluation."""
        return self.folder / f"{PREFIX}-{evaluation}.{rank}"

    def clear(self) -> None:
        """Remove what this rank has left behind when it was killed. Call it before the first evaluation."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"{PREFIX}-*.{self.rank}"):
                path.unlink(missing_ok=True)


class _Seen(msgspec.Struct, frozen=True, array_like=True):
    """One image, as a rank has seen it."""

    id: ImageId
    height: int
    width: int
    path: str | None
    tasks: TaskObjects


class SampleCollector:
    """Collects one evaluation after the other of one data set. Every rank has one."""

    def __init__(self, source: SampleSource, count: int, ranks: Ranks, *, score_threshold: float = 0.3) -> None:
        """Choose the images: the same on every rank.

        Args:
            source: The data set.
            count: How many images, at most.
            ranks: Which process this is.
            score_threshold: Where the score slider of a view starts.
        """
        self._source, self._count, self._ranks, self._threshold = source, count, ranks, score_threshold
        ids = source.ids()
        self._chosen: list[ImageId] | None = None if ids is None else list(choose_images(ids, count))
        if self._chosen is not None:
            source.keep(set(self._chosen))
        self._wanted: set[ImageId] = set(self._chosen or ())
        self._candidates: set[ImageId] = set()  # where nobody knows the ids: those that this rank would choose so far
        self._seen: dict[ImageId, _Seen] = {}
        self._evaluation = ""
        self._sample: ValidationSample | None = None
        self._said: set[str] = set()

    def begin(self, evaluation: str) -> None:
        """An evaluation begins; what is left of another one is forgotten.

        Args:
            evaluation: Names it in file names; equal on all ranks, and different from the one before.
        """
        self._evaluation = evaluation
        self._wanted, self._candidates, self._seen = set(self._chosen or ()), set(), {}

    def wants(self, image_id: Any) -> bool:
        """Whether an image belongs to the sample and has not been seen in this evaluation.

        Costs a look-up; where nobody knows the ids, 0.1 ms.
        """
        if self._chosen is not None or image_id in self._candidates:
            return image_id in self._wanted
        return len(self._candidates) < self._count or image_id in self._choose(self._candidates | {image_id})

    def add(
        self,
        image_id: ImageId,
        predictions: Callable[[], TaskDetections],
        height: int,
        width: int,
        path: str | None = None,
    ) -> None:
        """Take the predictions of a wanted image; they are copied, and may change afterwards.

        What cannot be had or does not fit together is left out with one warning. Blocking: masks are encoded; on ranks
        above 0 one write.

        Args:
            image_id: Of the image.
            predictions: Gives them, with scores, in pixels of the original image.
            height, width: Of the original image, as the model has it: goes before what the data set says.
            path: The image file, where no data set says it.
        """
        self._wanted.discard(image_id)
        if self._chosen is None:
            self._candidates = self._choose(self._candidates | {image_id})
        classes = len(self._source.classes) or MOST_CLASSES
        try:
            tasks = pack_tasks(predictions(), height, width, classes, predicted=True)
        except Exception as error:  # noqa: BLE001 -- promise 3: the other images are recorded
            self._warn("predictions of image", image_id, error)
            return
        if not tasks:
            return  # a model of something else than objects
        seen = _Seen(image_id, height, width, path, tasks)
        if self._ranks.rank == 0:
            self._seen[image_id] = seen
        else:
            self._hand_over(seen)

    def collect(self, split: str, metrics: Mapping[str, float]) -> SampleEvaluation | None:
        """What all ranks have seen in this evaluation; None if that is nothing. Rank 0 only.

        Call it after a collective of the framework that the other ranks enter when they have seen everything. The
        first time the sample is made, with what is true about it: that reads the annotations of its images.

        Args:
            split: "val" or "test".
            metrics: Of this evaluation, by canonical name.
        """
        for rank in range(1, self._ranks.world_size):
            path = self._ranks.part(self._evaluation, rank)
            for seen in _read(path):
                self._seen.setdefault(seen.id, seen)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        found, self._seen = self._seen, {}
        if self._chosen is None:
            found = {image_id: found[image_id] for image_id in sorted(self._choose(found), key=str)}
        if not found:
            return None
        if self._sample is None:
            self._sample = self._make_sample(found)
        elif self._chosen is None:
            self._sample = self._same_or_new(self._sample, found)
        return SampleEvaluation(
            self._sample, {image_id: seen.tasks for image_id, seen in found.items()}, self._threshold, metrics, split
        )

    def _choose(self, ids: Collection[Any]) -> set[ImageId]:
        return set(choose_images(ids, self._count))

    def _make_sample(self, found: Mapping[ImageId, _Seen]) -> ValidationSample:
        if self._chosen is None:
            images = [SampleImage(each.id, each.height, each.width, path=each.path) for each in found.values()]
            labels = (int(objects.labels.values().max(initial=-1)) for each in found.values()
                      for objects in each.tasks.values())  # fmt: skip
            classes = self._source.classes or [str(label) for label in range(max(labels, default=-1) + 1)]
            return ValidationSample(self._source.name, classes, images)
        images = []
        for image_id in self._chosen:
            try:
                image = self._source.image(image_id)
            except Exception as error:  # noqa: BLE001 -- promise 3: the other images are recorded
                self._warn("ground truth of image", image_id, error)
                continue
            if (seen := found.get(image_id)) is not None:
                image = dataclasses.replace(image, height=seen.height, width=seen.width)
            images.append(image)
        if not any(_has_objects(image) for image in images):  # a test set whose annotations are not public
            images = [dataclasses.replace(image, truth=None) for image in images]
        source = self._source
        return ValidationSample(
            source.name, source.classes, images, source.category_ids, source.keypoint_names, source.skeleton
        )

    def _same_or_new(self, sample: ValidationSample, found: Mapping[ImageId, _Seen]) -> ValidationSample:
        """The sample as before, unless other images have come or classes that had not been seen."""
        new = self._make_sample(found)
        classes = max(sample.classes, new.classes, key=len)
        same = {each.id for each in new.images} == {each.id for each in sample.images}
        return sample if same and len(classes) == len(sample.classes) else dataclasses.replace(new, classes=classes)

    def _hand_over(self, seen: _Seen) -> None:
        """Append an image to this rank's part. The file is closed each time: network disks show it to others then."""
        content = msgspec.msgpack.encode(seen)
        path = self._ranks.part(self._evaluation, self._ranks.rank)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with path.open("ab") as file:
                file.write(len(content).to_bytes(LENGTH_BYTES, "little") + content)
        except OSError as error:
            self._warn("handing over image", seen.id, error)

    def _warn(self, what: str, image_id: ImageId, error: Exception) -> None:
        if what not in self._said:
            self._said.add(what)
            say(f"{what} {image_id!r} left out, the others are recorded: {type(error).__name__}: {error}")


def _has_objects(image: SampleImage) -> bool:
    return image.truth is not None and any(len(objects.labels) for objects in by_task(image.truth).values())


def _read(path: Path) -> Iterator[_Seen]:
    """What a rank has left; nothing if its disk is another one."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    position = 0
    while position + LENGTH_BYTES <= len(content):
        start = position + LENGTH_BYTES
        position = start + int.from_bytes(content[position:start], "little")
        with contextlib.suppress(msgspec.MsgspecError):  # a rank was killed while it wrote
            yield msgspec.msgpack.decode(content[start:position], type=_Seen)
