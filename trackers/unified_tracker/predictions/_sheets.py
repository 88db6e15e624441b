"""Sheets: a sample and the predictions on it as they lie in the run directory, from the training to the uploader.

msgpack, by msgspec. The training thread encodes; everything else (reading images, matching, drawing) is done by the
uploader. Masks are COCO's compressed run-length encoding, or the polygons that the data set had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from unified_tracker._errors import RecordError
from unified_tracker.predictions._detections import TASKS, Detections, Task, TaskDetections
from unified_tracker.predictions._rle import first_broken
from unified_tracker.predictions._runlengths import encode_bitmap
from unified_tracker.predictions._sample import ImageId

MOST_OBJECTS: Final = 300  # of one image and task, the best by score; LVIS evaluates as many
Mask = bytes | list[list[float]]


class Array(msgspec.Struct, frozen=True, array_like=True):
    """A NumPy array as bytes; floats stay in the precision in which the framework had them."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Array:
        """Pack."""
        return cls(values.dtype.str, values.shape, np.ascontiguousarray(values).tobytes())

    def values(self) -> npt.NDArray[Any]:
        """Unpack; read-only."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


class Objects(msgspec.Struct, frozen=True, array_like=True):
    """`Detections`, checked and packed.

    Attributes:
        labels: (n,) int32.
        boxes: (n, 4) float, xyxy pixels.
        scores: (n,) float.
        masks: n COCO masks, compressed run-length counts or polygons, of the size of the image.
        keypoints: (n, k, 3) float.
        crowd: (n,) bool.
    """

    labels: Array
    boxes: Array | None = None
    scores: Array | None = None
    masks: list[Mask] | None = None
    keypoints: Array | None = None
    crowd: Array | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]


TaskObjects = dict[Task, Objects]


class ImageSheet(msgspec.Struct, frozen=True, array_like=True):
    """One image of the sample.

    Attributes:
        name: What people see.
        file: Where the image is: absolute, or relative to the run directory (`.npy` of given pixels); "" for none.
        size, mtime_ns: Of the file at the time of logging.
        truth: Task to objects; None if nobody has said what is true.
    """

    id: ImageId
    name: str
    height: int
    width: int
    file: str
    size: int
    mtime_ns: int
    truth: TaskObjects | None


class SampleSheet(msgspec.Struct, frozen=True, array_like=True):
    """A `ValidationSample`."""

    dataset: str
    classes: list[str]
    category_ids: list[int]
    keypoint_names: list[str]
    skeleton: list[tuple[int, int]]
    images: list[ImageSheet]


class PredictionSheet(msgspec.Struct, frozen=True, array_like=True):
    """A `SampleEvaluation` without its sample.

    Attributes:
        images: Image id to task to objects.
    """

    split: str
    score_threshold: float
    metrics: dict[str, float]
    images: dict[ImageId, TaskObjects]


def encode(sheet: SampleSheet | PredictionSheet) -> bytes:
    """As it is written."""
    return msgspec.msgpack.encode(sheet)


def decode_sample(content: bytes) -> SampleSheet:
    """The reverse of `encode`."""
    return msgspec.msgpack.decode(content, type=SampleSheet)


def decode_predictions(content: bytes) -> PredictionSheet:
    """The reverse of `encode`."""
    return msgspec.msgpack.decode(content, type=PredictionSheet)


def digest(content: bytes) -> str:
    """Names a sheet by its content; 16 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def by_task(given: TaskDetections) -> Mapping[Task, Detections]:
    """Detections of one task, or of several, alike."""
    return {"instances": given} if isinstance(given, Detections) else given


def pack_tasks(given: TaskDetections, height: int, width: int, classes: int, *, predicted: bool) -> TaskObjects:
    """`pack` for each task of an image.

    Raises:
        RecordError: There is no such task, or the parts of one do not fit together.
    """
    tasks = by_task(given)
    refuse_unknown_tasks(tasks)
    return {task: pack(objects, height, width, classes, predicted=predicted) for task, objects in tasks.items()}


def refuse_unknown_tasks(tasks: Collection[str]) -> None:
    """Raise a `RecordError` that names a task which there is not."""
    if unknown := set(tasks) - set(TASKS):
        raise RecordError(f"unknown task {sorted(map(str, unknown))[0]!r}; there are {', '.join(sorted(TASKS))}")


def pack(given: Detections, height: int, width: int, classes: int, *, predicted: bool) -> Objects:
    """Check and pack the objects of one image and task. Masks are encoded here: the one costly thing.

    Args:
        given: The objects.
        height, width: Of the image, in pixels.
        classes: How many there are.
        predicted: They must have scores; only the best 300 by score are kept.

    Raises:
        RecordError: The parts do not fit together; says which, and how.
    """
    labels = _array("labels", given.labels, 1).astype(np.int32)
    count = len(labels)
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise RecordError(f"labels must be 0 to {classes - 1}, not {labels.min()} to {labels.max()}")
    boxes = _floats("boxes", given.boxes, count, 4)
    scores = _floats("scores", given.scores, count)
    if predicted and scores is None:
        raise RecordError("predictions need scores")
    keypoints = None if given.keypoints is None else _array("keypoints", given.keypoints, 3)
    if keypoints is not None and (len(keypoints) != count or (count and keypoints.shape[2] != 3)):
        raise RecordError(f"keypoints must have the shape ({count}, k, 3), not {keypoints.shape}")
    crowd = None if given.crowd is None else _array("crowd", given.crowd, 1).astype(bool)
    if crowd is not None and len(crowd) != count:
        raise RecordError(f"crowd has {len(crowd)} values for {count} objects")
    masks = given.masks
    if masks is not None and len(masks) != count:
        raise RecordError(f"there are {len(masks)} masks for {count} objects")
    if masks is None and boxes is None and keypoints is None and count:
        raise RecordError("objects need boxes, masks or keypoints")
    if scores is not None and count > MOST_OBJECTS and predicted:
        best = np.argsort(-scores, kind="stable")[:MOST_OBJECTS]
        labels, scores = labels[best], scores[best]
        boxes = None if boxes is None else boxes[best]
        keypoints = None if keypoints is None else keypoints[best]
        crowd = None if crowd is None else crowd[best]
        masks = None if masks is None else [masks[int(index)] for index in best]
    return Objects(
        Array.of(labels),
        None if boxes is None else Array.of(boxes),
        None if scores is None else Array.of(scores),
        None if masks is None else _pack_masks(masks, height, width),
        None if keypoints is None else Array.of(_as_float(keypoints)),
        None if crowd is None or not crowd.any() else Array.of(crowd),
    )


def _pack_masks(masks: Any, height: int, width: int) -> list[Mask]:
    if not isinstance(masks, (list, tuple)) or (masks and not isinstance(masks[0], (dict, list, tuple))):
        return _pack_bitmaps([plain(mask) for mask in masks], height, width)
    packed = [_pack_mask(mask, height, width) for mask in masks]
    encoded = {index: mask for index, mask in enumerate(packed) if isinstance(mask, bytes)}
    broken = first_broken(list(encoded.values()), height, width)
    if broken is not None:
        which = list(encoded)[broken]
        raise RecordError(f"mask {which} is no run-length encoding of an image of {height} x {width} pixels")
    return packed


def _pack_bitmaps(masks: list[Any], height: int, width: int) -> list[Mask]:
    for mask in masks:
        if mask.shape != (height, width):
            raise RecordError(f"masks must have the size of the image, ({height}, {width}), not {mask.shape}")
    return [encode_bitmap(mask) for mask in masks]


def _pack_mask(mask: Any, height: int, width: int) -> Mask:
    if not isinstance(mask, dict):
        return [[float(number) for number in polygon] for polygon in mask]
    if list(mask["size"]) != [height, width]:
        raise RecordError(f"masks must have the size of the image, [{height}, {width}], not {list(mask['size'])}")
    counts = mask["counts"]
    if isinstance(counts, list):
        if min(counts, default=0) < 0:
            return b""  # which is no mask, and refused
        from pycocotools import mask as coco

        return bytes(coco.frPyObjects(mask, height, width)["counts"])
    return counts if isinstance(counts, bytes) else str(counts).encode()


def _floats(name: str, given: Any, count: int, columns: int | None = None) -> npt.NDArray[Any] | None:
    if given is None:
        return None
    array = _as_float(_array(name, given, 1 if columns is None else 2))
    expected = (count,) if columns is None else (count, columns)
    if not count:
        return array.reshape(expected)
    if array.shape != expected:
        raise RecordError(f"{name} must have the shape {expected}, not {array.shape}")
    return array


def _array(name: str, given: Any, dimensions: int) -> npt.NDArray[Any]:
    array = plain(given)
    if array.size == 0 and array.ndim <= dimensions:
        return array.reshape((0,) * dimensions)
    if array.ndim != dimensions:
        raise RecordError(f"{name} must have {dimensions} dimensions, not the shape {array.shape}")
    return array


def _as_float(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array if array.dtype in {np.dtype(np.float32), np.dtype(np.float64)} else array.astype(np.float64)


def plain(given: Any) -> npt.NDArray[Any]:
    """A NumPy array of anything; a tensor leaves its device and its gradients behind."""
    if str(getattr(given, "dtype", "")) == "torch.bfloat16":  # NumPy has no such type
        given = given.float()
    for step in ("detach", "cpu", "numpy"):
        given = getattr(given, step)() if hasattr(given, step) else given
    return np.asarray(given)
