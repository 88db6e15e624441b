"""Run-length encoding of bitmaps: the bytes of pycocotools."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

coco = pytest.importorskip("pycocotools.mask")

from unified_tracker.predictions._runlengths import MOST_BORDERS, encode_bitmap, encode_map

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def expected(bitmap: npt.NDArray[np.bool_]) -> bytes:
    return bytes(coco.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"])


@given(arrays(bool, sizes))
def test_bitmap_is_encoded_as_pycocotools_does(bitmap: npt.NDArray[np.bool_]) -> None:
    assert encode_bitmap(bitmap) == expected(bitmap)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32), st.floats(0, 1))
def test_rectangles_and_noise_of_any_size(height: int, width: int, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    top, left = rng.integers(height), rng.integers(width)
    bitmap = np.zeros((height, width), bool)
    bitmap[top : rng.integers(top, height + 1), left : rng.integers(left, width + 1)] = True
    bitmap &= rng.random(bitmap.shape) >= noise**4
    assert encode_bitmap(bitmap) == expected(bitmap)
    assert encode_bitmap(bitmap.T) == expected(bitmap.T)
    assert encode_bitmap(bitmap * np.uint8(255)) == expected(bitmap)


def test_noise_that_has_more_borders_than_any_mask() -> None:
    bitmap = np.random.default_rng(5).random((400, 400)) > 0.5
    assert np.count_nonzero(np.diff(bitmap, axis=0)) > MOST_BORDERS
    assert encode_bitmap(bitmap) == expected(bitmap)


@given(arrays(np.int32, sizes, elements=st.integers(-2, 3)))
def test_map_is_encoded_region_by_region(values: npt.NDArray[np.int32]) -> None:
    assert encode_map(values) == {int(value): expected(values == value) for value in np.unique(values)}
