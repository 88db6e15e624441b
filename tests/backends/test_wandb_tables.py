"""Our tables beside those of the real client: the same in every value, and read by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

wandb = pytest.importorskip("wandb")

from tests.backends.wandb_feeding import Feeder, clean_environment
from tests.backends.wandb_reports import CLASSES, HEIGHT, WIDTH, bitmap, found, picture_file, reported, scene
from unified_tracker.backends._wandb_images import LayeredImage, Names
from unified_tracker.backends._wandb_masks import MaskLayers
from unified_tracker.backends._wandb_objects import TaskObjects
from unified_tracker.backends._wandb_pictures import Picture
from unified_tracker.backends._wandb_sample import draft_sample, image_cell
from unified_tracker.backends._wandb_store import Store, stored
from unified_tracker.backends._wandb_tables import ImageColumn, Table, classes_file, identifiers
from unified_tracker.predictions import SampleEvaluation


def sorted_all(value: Any) -> Any:
    """Types as W&B compares them: the members of a union and of a set have no order."""
    if isinstance(value, dict):
        return {key: sorted_all(inner) for key, inner in value.items() if key != "is_set"}
    if isinstance(value, list):
        return sorted((sorted_all(inner) for inner in value), key=lambda each: json.dumps(each, sort_keys=True))
    return value


def test_a_table_is_the_one_that_the_client_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Boxes with scores, a mask, a caption, an image without layers, empty cells."""
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    file = stored(picture_file(tmp_path / "0.jpg", 0))
    names = {1: "balloon", 2: "kite"}
    boxes = [
        {
            "position": {"minX": 1.5, "minY": 2.25, "maxX": 10.1, "maxY": 20},
            "class_id": 2,
            "box_caption": "kite 0.50",
            "domain": "pixel",
            "scores": {"score": 0.5, "iou": 0.25},
        }
    ]
    mask = bitmap(4, 4, 24, 24).astype(np.uint8) * 2
    theirs = wandb.Table(columns=["name", "image", "number"])
    layers = {"masks": {"m": {"mask_data": mask, "class_labels": names}}}
    layers["boxes"] = {"b": {"box_data": boxes, "class_labels": names}}
    theirs.add_data("ä", wandb.Image(str(file.file), caption="why", **layers), 1.5)
    theirs.add_data(None, wandb.Image(str(file.file), boxes={"b": {"box_data": [], "class_labels": names}}), None)
    artifact = wandb.Artifact("a", "dataset")
    entry = artifact.add(theirs, "t")
    expected = json.loads(Path(entry.local_path).read_bytes())

    first, second = (row[1] for row in expected["data"])
    column = ImageColumn({"b": names}, {"m": names}, {"iou", "score"})
    ours = Table({"name": "string", "image": "image-file", "number": "number"}, {"image": column})
    picture = Picture(first["path"], file)
    bare = SimpleNamespace(boxes={"b": boxes}, masks={"m": first["masks"]["m"]})
    cell = image_cell(picture, bare, WIDTH, HEIGHT, first["classes"])  # type: ignore[arg-type]
    ours.add({"name": "ä", "image": {**cell, "caption": "why"}, "number": 1.5})
    empty = {key: value for key, value in cell.items() if key != "masks"} | {"boxes": {"b": []}}
    ours.add({"image": empty | {"classes": second["classes"]}})
    written = json.loads(ours.encode())
    types = written.pop("column_types"), expected.pop("column_types")
    assert sorted_all(types[0]) == sorted_all(types[1])
    assert written == expected


def test_the_client_reads_the_sample_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment(monkeypatch, tmp_path)
    _, report = reported(tmp_path, Feeder(tmp_path), SampleEvaluation(scene(tmp_path), {0: found()}))
    draft = draft_sample(report, Store(tmp_path))

    class Downloaded:
        """An artifact whose files are here."""

        def get_entry(self, name: str) -> Any:
            return SimpleNamespace(download=lambda: str(draft.files[name]))

        def get(self, name: str) -> Any:
            return wandb.Classes.from_json(json.loads(draft.files[name].read_bytes()), self)

    table = wandb.Table.from_json(json.loads(draft.files["val_data.table.json"].read_bytes()), Downloaded())
    assert table.get_column("image_id") == [0, 1, 2]
    for image in table.get_column("image"):
        assert isinstance(image, wandb.Image) and image.image.size == (WIDTH, HEIGHT)
        assert set(image._masks) == {"ground_truth", "ground_truth 2"}
        assert [box["class_id"] for box in image._boxes["ground_truth"]._val] == [1, 2]
        assert {each["id"]: each["name"] for each in image._classes._class_set}[3] == CLASSES[2]


def test_the_same_report_is_the_same_in_every_process(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tests.backends.wandb_reports import *
from unified_tracker.backends._wandb_sample import draft_sample
from unified_tracker.backends._wandb_store import Store
folder = Path({str(tmp_path)!r})
_, report = reported(folder, Feeder(folder), SampleEvaluation(scene(folder), {{0: found()}}))
draft = draft_sample(report, Store(folder / "store"))
print(sorted((name, path.name) for name, path in draft.files.items() if name.startswith("media") or "table" in name))
"""
    said = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(said) == 1 and "val_data.table.json" in said.pop()


def test_image_ids_that_a_browser_would_round_are_texts() -> None:
    assert identifiers([1, 2]) == ("number", [1, 2])
    assert identifiers([1, "a"]) == ("string", ["1", "a"])
    assert identifiers([2**53 + 1]) == ("string", [str(2**53 + 1)])
    assert identifiers([]) == ("number", [])


def test_every_mask_lies_whole_in_one_layer(tmp_path: Path) -> None:
    """Random masks of two classes: each in exactly one layer, none beside another of its class in the same one."""
    from pycocotools import mask as coco

    rng = np.random.default_rng(3)
    for _ in range(20):
        masks, labels = [], [int(label) for label in rng.integers(0, 2, 6)]
        for _ in labels:
            x, y = rng.integers(0, WIDTH - 8), rng.integers(0, HEIGHT - 8)
            masks.append(rng.random((HEIGHT, WIDTH)) < 0.7)
            masks[-1] &= bitmap(x, y, x + int(rng.integers(1, 30)), y + int(rng.integers(1, 30)))
        layers = MaskLayers(HEIGHT, WIDTH)
        layers.add(labels, [coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode() for mask in masks])
        placed = list(layers.maps())
        assert layers.left_out == 0
        for label, mask in zip(labels, masks, strict=True):
            if mask.any():
                assert sum(bool((layer[mask] == label + 1).all()) for _, _, layer in placed) >= 1
        for label in (0, 1):
            union = sum((layer == label + 1).astype(int) for _, _, layer in placed)
            mine = [mask for mask, own in zip(masks, labels, strict=True) if own == label]
            assert np.array_equal(union, sum((mask.astype(int) for mask in mine), np.zeros_like(union)))


def test_a_layered_image_names_what_occurs(tmp_path: Path) -> None:
    column = ImageColumn()
    layers = LayeredImage(HEIGHT, WIDTH, Names(["a", "b"], []), column, Store(tmp_path))
    layers.add_truth(TaskObjects([1], [[1.0, 2.0, 3.0, 4.0]]), "ground_truth")
    assert column.boxes == {"ground_truth": {2: "b"}}
    assert json.loads(classes_file({1: "a"})) == {"_type": "classes", "class_set": [{"id": 1, "name": "a"}]}
