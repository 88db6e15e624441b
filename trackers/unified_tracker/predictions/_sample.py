"""The sample: the validation images that every evaluation is looked at on, chosen once, always the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unified_tracker.predictions._detections import TaskDetections

if TYPE_CHECKING:  # imports this module
    from unified_tracker.predictions._sheets import TaskObjects

ImageId = int | str
I = TypeVar("I", int, str)  # noqa: E741 -- an image id


def choose_images(ids: Iterable[I], count: int, seed: int = 0) -> list[I]:
    """Choose images by their ids; the same ids and seed give the same choice on every machine, in every process.

    The choice depends neither on the order of the ids nor on any random state, and touches none. A larger `count` keeps
    what a smaller one has chosen; images that come to the data set later move few of it.

    Args:
        ids: Image ids; what occurs several times counts once.
        count: How many; as many as there are if there are fewer.
        seed: Another seed, another choice.

    Returns:
        The chosen ids, sorted.
    """

    def order(image_id: I) -> bytes:
        return hashlib.blake2b(f"{seed}/{image_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    unique = dict.fromkeys(ids)
    return sorted(sorted(unique, key=order)[: max(count, 0)], key=lambda each: (isinstance(each, str), each))


@dataclass(frozen=True, slots=True)
class SampleImage:
    """One image of the sample, with what is true about it.

    Attributes:
        id: As the data set has it; unique in the sample.
        height, width: Of the original image, in pixels, in the orientation in which its boxes are meant.
        path: The image file. It is read by the uploader, and must stay as it is until then.
        pixels: Instead of a file: (height, width, 3) RGB or (height, width) grey, uint8 or uint16, or float 0 to 1.
        name: What people see; default: the file's name with the last folder.
        truth: What is true; None if nobody has said.
    """

    id: ImageId
    height: int
    width: int
    path: str | Path | None = None
    pixels: Any = None
    name: str | None = None
    truth: TaskDetections | None = None


@dataclass(frozen=True, slots=True)
class ValidationSample:
    """The images of an evaluation that are recorded. Stored once, and again only when its content has changed.

    Attributes:
        dataset: Name of the data set; the sample is the artifact `<dataset>-val`.
        classes: Class names, in the order of the labels.
        images: The images.
        category_ids: The data set's own ids of the classes, for COCO results; default: 1, 2, 3, ...
        keypoint_names: Names of the keypoints, in order.
        skeleton: Pairs of keypoint indices, 0-based, that are joined by a line.
    """

    dataset: str
    classes: Sequence[str]
    images: Sequence[SampleImage]
    category_ids: Sequence[int] | None = None
    keypoint_names: Sequence[str] = ()
    skeleton: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class SampleEvaluation:
    """What a model said about the sample, once.

    Attributes:
        sample: The images.
        predictions: Image id to detections with scores, all of them: filtering happens when looking. Images of the
            sample that are missing were not evaluated; an image without detections has empty ones. Ids that are not in
            the sample are ignored. Also as `SampleCollector` has packed them.
        score_threshold: Where the score slider of a view starts, 0 to 1.
        metrics: Metrics of this evaluation, shown beside it.
        split: "val" or "test".
    """

    sample: ValidationSample
    predictions: Mapping[ImageId, TaskDetections | TaskObjects]
    score_threshold: float = 0.3
    metrics: Mapping[str, float] = field(default_factory=dict)
    split: str = "val"
