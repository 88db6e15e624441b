"""Run-length encodings from elsewhere: the right ones pass, no other reaches pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as coco

from unified_tracker import RecordError
from unified_tracker.predictions import Detections
from unified_tracker.predictions._rle import first_broken
from unified_tracker.predictions._sheets import pack


def decoded(counts: bytes) -> list[int] | None:
    """As pycocotools' `rleFrString` reads it, one character at a time; None for what is no numbers."""
    runs: list[int] = []
    value = place = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64 or place > 6:
            return None
        value |= (bits & 31) << (5 * place)
        place += 1
        if not bits & 32:
            value |= -1 << (5 * place) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = place = 0
    return None if place else runs


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_what_pycocotools_has_encoded_passes(height: int, width: int, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    bitmaps = [rng.random((height, width)) < rng.random() for _ in range(count)]
    masks = [coco.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"] for bitmap in bitmaps]
    assert first_broken(masks, height, width) is None
    assert first_broken(masks, height + 1, width) == (0 if masks else None)


@given(st.lists(st.binary(max_size=8) | st.text("0123456789:;<OPQ_`no", max_size=12).map(str.encode), max_size=4))
@example([b"", b""])
@example([b"P", b"1"])
@example([b"`0"])
def test_exactly_what_fills_the_image_passes(masks: list[bytes]) -> None:
    runs = [decoded(mask) for mask in masks]
    good = [each is not None and min(each, default=0) >= 0 and sum(each) == 12 for each in runs]
    assert first_broken(masks, 3, 4) == (good.index(False) if False in good else None)


def test_every_cut_of_a_mask_is_refused() -> None:
    mask = np.asfortranarray(np.random.default_rng(0).random((40, 50)) < 0.1).astype(np.uint8)
    counts = coco.encode(mask)["counts"]
    assert [cut for cut in range(len(counts) + 1) if first_broken([counts, counts[:cut]], 40, 50) is None] == [
        len(counts)
    ]


@pytest.mark.parametrize("counts", [b"garbage", "8olJ", [5, 5], [-3, 15]])
def test_a_prediction_with_a_broken_mask_is_refused_and_says_which(counts: object) -> None:
    good = coco.encode(np.ones((3, 4), np.uint8, order="F"))
    given_masks = [good, [[0, 0, 4, 0, 4, 3]], {"size": [3, 4], "counts": counts}]
    with pytest.raises(RecordError) as caught:
        pack(Detections([0, 0, 0], scores=[1, 1, 1], masks=given_masks), 3, 4, 1, predicted=True)
    assert str(caught.value) == "mask 2 is no run-length encoding of an image of 3 x 4 pixels"
