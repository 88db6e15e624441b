"""Maps: panoptic and semantic maps as objects with masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unified_tracker.predictions._detections import Detections
from unified_tracker.predictions._runlengths import encode_map
from unified_tracker.predictions._sheets import plain


def detections_from_map(
    values: Any,
    label_of: Callable[[int], int | None],
    *,
    scores: Mapping[int, float] | None = None,
    crowd: Callable[[int], bool] | None = None,
) -> Detections:
    """One object for each value of a map.

    Args:
        values: (height, width) integers: NumPy, or PyTorch on any device.
        label_of: Value to label; None for what is no object, such as void.
        scores: Value to score, for predictions; a value without one has the score 1. None: this is what is true.
        crowd: Whether a value is a region in which nothing counts as wrong.

    Blocking: 1 to 3 ms at 640x480, whatever the number of segments.
    """
    values = plain(values)
    height, width = values.shape
    found = [(value, label, counts) for value, counts in encode_map(values).items()
             if (label := label_of(value)) is not None]  # fmt: skip
    return Detections(
        labels=np.array([label for _, label, _ in found], np.int32),
        scores=None if scores is None else np.array([scores.get(value, 1.0) for value, _, _ in found], np.float64),
        masks=[{"size": [height, width], "counts": counts} for _, _, counts in found],
        crowd=None if crowd is None else np.array([crowd(value) for value, _, _ in found], bool),
    )


def read_map(path: str | Path) -> npt.NDArray[np.int32]:
    """A map from an image file: grey or palette values, or COCO's panoptic ids, red + 256 green + 65536 blue.

    Blocking: decodes the file, some milliseconds.
    """
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image)
    if pixels.ndim == 3:
        colours = pixels[..., :3].astype(np.int32)
        pixels = colours[..., 0] + (colours[..., 1] << 8) + (colours[..., 2] << 16)
    return pixels.astype(np.int32)
