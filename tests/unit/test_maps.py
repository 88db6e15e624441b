"""Panoptic and semantic maps as objects with masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

coco = pytest.importorskip("pycocotools.mask")

from unified_tracker.predictions._maps import detections_from_map, read_map
from unified_tracker.predictions._sheets import pack


def test_every_value_that_has_a_label_is_an_object() -> None:
    values = np.zeros((6, 8), np.int64)
    values[:2, :3], values[3:, 4:], values[2, :] = 7, 1002, 255
    labels = {0: 2, 7: 0, 1002: 1}
    found = detections_from_map(values, labels.get, scores={7: 0.25}, crowd=lambda value: value == 7)
    objects = pack(found, 6, 8, 3, predicted=True)
    assert objects.labels.values().tolist() == [2, 0, 1]
    assert objects.scores is not None and objects.crowd is not None and objects.masks is not None
    assert objects.scores.values().tolist() == [1.0, 0.25, 1.0]
    assert objects.crowd.values().tolist() == [False, True, False]
    for counts, value in zip(objects.masks, labels, strict=True):
        assert (coco.decode({"size": [6, 8], "counts": counts}) == (values == value)).all()


def test_map_without_any_object_is_packed_as_none() -> None:
    assert len(pack(detections_from_map(np.full((3, 3), 255), {}.get, scores={}), 3, 3, 1, predicted=True)) == 0


def test_maps_are_read_from_grey_palette_and_coloured_images(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    palette = Image.fromarray(grey, "P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "palette.png")
    coloured = np.stack([grey, grey + 1, grey + 2], 2)
    Image.fromarray(coloured).save(tmp_path / "coloured.png")
    assert read_map(tmp_path / "grey.png").tolist() == grey.tolist()
    assert read_map(tmp_path / "palette.png").tolist() == grey.tolist()
    wide = grey.astype(int)
    assert read_map(tmp_path / "coloured.png").tolist() == (wide + 256 * (wide + 1) + 65536 * (wide + 2)).tolist()
