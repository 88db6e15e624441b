"""Mask layers: what of the masks of one image fits on one another, as the 8-bit maps that W&B shows.

A layer has one value a pixel. A value means a class, the same one in every row of a table: W&B keeps the names of the
values with the column, not with the picture. So masks that overlap, or that touch and are of the same class, come to
lie in different layers, each whole; what finds no place in `MOST_LAYERS` layers is left out and counted.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco

MOST_LAYERS: Final = 8  # of one image, group of classes, and side
VALUES: Final = 255  # 0 is where nothing is
RUN_LENGTHS: Final = 3  # zlib's strategy: for masks half the time of the usual one, and smaller

Bitmap = npt.NDArray[np.uint8]
Window = tuple[slice, slice]


class MaskLayers:
    """The masks of one image and side.

    Attributes:
        left_out: Masks that found no place.
    """

    def __init__(self, height: int, width: int) -> None:
        self._shape = height, width
        self._layers: dict[int, list[Bitmap]] = {}
        self.left_out = 0

    def add(self, labels: Sequence[int], counts: Sequence[str]) -> None:
        """Place masks, the first ones first.

        Args:
            labels: Classes, 0-based.
            counts: Compressed run-length encodings of the size of the image.
        """
        size = list(self._shape)
        for label, each in zip(labels, counts, strict=True):
            encoded = {"size": size, "counts": each.encode()}
            window = _window(coco.toBbox(encoded), self._shape)
            if window is not None:
                self._place(label, coco.decode(encoded)[window].astype(bool), window)

    def maps(self) -> Iterator[tuple[int, int, Bitmap]]:
        """Group of classes, number of the layer in it, and the map."""
        for group, layers in sorted(self._layers.items()):
            for number, layer in enumerate(layers):
                yield group, number, layer

    def _place(self, label: int, mask: npt.NDArray[np.bool_], window: Window) -> None:
        group, value = group_of(label), value_of(label)
        layers = self._layers.setdefault(group, [])
        for layer in layers:
            if not layer[window][mask].any() and not _touches(layer, value, mask, window):
                break
        else:
            if len(layers) >= MOST_LAYERS:
                self.left_out += 1
                return
            layer = np.zeros(self._shape, np.uint8)
            layers.append(layer)
        layer[window][mask] = value


def value_of(label: int) -> int:
    """Value of a class in the layers of its group."""
    return label % VALUES + 1


def group_of(label: int) -> int:
    """Which 255 classes share layers with this one."""
    return label // VALUES


def layer_name(name: str, group: int, number: int, classes: int) -> str:
    """What the user sees: "predictions", "predictions 2"; of data sets with more than 255 classes, also which ones."""
    if classes > VALUES:
        last = min((group + 1) * VALUES, classes)
        name = f"{name}, classes {group * VALUES + 1} to {last}"
    return name if number == 0 else f"{name} {number + 1}"


def png(layer: Bitmap) -> bytes:
    """A layer as a file."""
    content = io.BytesIO()
    Image.fromarray(layer).save(content, "PNG", compress_type=RUN_LENGTHS)
    return content.getvalue()


def _window(box: Any, shape: tuple[int, int]) -> Window | None:
    """The part of an image in which a mask lies; None if it is empty."""
    x, y, width, height = (int(number) for number in np.asarray(box).reshape(-1))
    if not width or not height:
        return None
    return slice(y, min(y + height, shape[0])), slice(x, min(x + width, shape[1]))


def _touches(layer: Bitmap, value: int, mask: npt.NDArray[np.bool_], window: Window) -> bool:
    """True if a mask lies beside pixels of its own class: the two would be seen as one."""
    rows, columns = window
    wider = slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(columns.start - 1, 0), columns.stop + 1)
    same = layer[wider] == value
    if not same.any():
        return False
    grown = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    for down in range(3):
        for right in range(3):
            grown[down : down + mask.shape[0], right : right + mask.shape[1]] |= mask
    top, left = 1 - (rows.start - wider[0].start), 1 - (columns.start - wider[1].start)
    return bool(grown[top : top + same.shape[0], left : left + same.shape[1]][same].any())
