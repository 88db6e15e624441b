"""The writer: a sample and the predictions on it, packed and put into the run directory. For the training thread."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, Final

import numpy as np

from unified_tracker._errors import RecordError
from unified_tracker._staging import Staging
from unified_tracker._values import as_text, number
from unified_tracker.predictions import _sheets
from unified_tracker.predictions._detections import Detections
from unified_tracker.predictions._sample import ImageId, SampleEvaluation, SampleImage, ValidationSample
from unified_tracker.predictions._sheets import ImageSheet, PredictionSheet, SampleSheet, TaskObjects
from unified_tracker.records import StagedFile

UNFIT: Final = (
    RecordError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
)  # of an image, not of a sample
FOLDER: Final = "predictions"  # in the run directory


class SampleWriter:
    """Writes sheets into one run directory. A sample is packed when it comes first, and recognised afterwards."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._sample: ValidationSample | None = None  # held, so that no other object can get its identity
        self._sheet: SampleSheet
        self._file: StagedFile
        self._sizes: dict[ImageId, tuple[int, int]] = {}

    @property
    def images(self) -> int:
        """How many the sample has that was written last."""
        return len(self._sizes)

    def write(self, evaluation: SampleEvaluation) -> tuple[StagedFile, StagedFile, list[str]]:
        """Write what is new.

        Returns:
            The file of the sample, the file of the predictions, and a sentence about each image that was refused.

        Raises:
            RecordError: The sample cannot be used at all.
            OSError: The disk does not take it.
        """
        refused: list[str] = []
        if evaluation.sample is not self._sample:
            self._write_sample(evaluation.sample, refused)
        images: dict[ImageId, TaskObjects] = {}
        for image_id, given in evaluation.predictions.items():
            size = self._sizes.get(image_id)
            if size is None:
                continue
            try:
                images[image_id] = self._packed(given, *size)
            except UNFIT as error:
                refused.append(f"predictions of image {image_id!r}: {error}")
        metrics = {as_text(name): value for name, value in evaluation.metrics.items() if number(value) is not None}
        threshold = number(evaluation.score_threshold)
        sheet = PredictionSheet(
            as_text(evaluation.split),
            min(max(float(threshold), 0.0), 1.0) if threshold is not None and threshold == threshold else 0.3,
            {name: float(value) for name, value in metrics.items()},
            images,
        )
        content = _sheets.encode(sheet)
        return self._file, self._staging.keep(f"{FOLDER}/{_sheets.digest(content)}.predictions", content), refused

    def _write_sample(self, sample: ValidationSample, refused: list[str]) -> None:
        classes = [as_text(name) for name in sample.classes]
        ids = list(range(1, len(classes) + 1)) if sample.category_ids is None else [int(i) for i in sample.category_ids]
        if len(ids) != len(classes):
            raise RecordError(f"the sample has {len(classes)} classes and {len(ids)} category ids")
        images: dict[ImageId, ImageSheet] = {}
        for image in sample.images:
            try:
                packed = self._packed_image(image, len(classes))
                if packed.id in images:
                    raise RecordError("its id comes a second time")
                images[packed.id] = packed
            except UNFIT as error:  # noqa: PERF203 -- one image of a hundred
                refused.append(f"sample: image {image.id!r}: {error}")
        self._sheet = SampleSheet(
            as_text(sample.dataset),
            classes,
            ids,
            [as_text(name) for name in sample.keypoint_names],
            [(int(a), int(b)) for a, b in sample.skeleton],
            list(images.values()),
        )
        content = _sheets.encode(self._sheet)
        self._file = self._staging.keep(f"{FOLDER}/{_sheets.digest(content)}.sample", content)
        self._sizes = {image.id: (image.height, image.width) for image in images.values()}
        self._sample = sample

    def _packed_image(self, image: SampleImage, classes: int) -> ImageSheet:
        height, width = int(image.height), int(image.width)
        truth = None
        if image.truth is not None:
            truth = _sheets.pack_tasks(image.truth, height, width, classes, predicted=False)
        image_id: ImageId = image.id if isinstance(image.id, str) else int(image.id)
        file, size, mtime_ns, name = "", 0, 0, str(image_id)
        if image.pixels is not None:
            staged = self._staging.keep(*_pixels(image.pixels))
            file, size, mtime_ns = staged.staged, staged.size, staged.mtime_ns
        elif image.path is not None:
            path = Path(image.path).absolute()
            file, name = str(path), "/".join(path.parts[-2:])
            try:
                stat = path.stat()
                size, mtime_ns = stat.st_size, stat.st_mtime_ns
            except OSError:
                pass  # the uploader says so on the page
        return ImageSheet(image_id, as_text(image.name or name), height, width, as_text(file), size, mtime_ns, truth)

    def _packed(self, given: Any, height: int, width: int) -> TaskObjects:
        if not isinstance(given, Detections) and all(isinstance(each, _sheets.Objects) for each in given.values()):
            _sheets.refuse_unknown_tasks(given)
            return dict(given)  # packed when it was collected
        return _sheets.pack_tasks(given, height, width, len(self._sheet.classes), predicted=True)


def _pixels(given: Any) -> tuple[str, bytes]:
    """Name and content of the file that keeps an image which was given as an array."""
    array = _sheets.plain(given)
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {1, 3, 4}) or not array.size:
        raise RecordError(f"pixels must have the shape (height, width[, 1, 3 or 4]), not {array.shape}")
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    content = buffer.getvalue()
    return f"{FOLDER}/images/{hashlib.blake2b(content, digest_size=8).hexdigest()}.npy", content
