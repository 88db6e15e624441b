"""Predictions in W&B, offline: tables, layers and artifacts, read back from the run's own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("wandb")

from PIL import Image

from tests.backends.wandb_feeding import TS, Feeder, clean_environment, info
from tests.backends.wandb_files import OfflineArtifact, OfflineRun, offline_folders, read_run
from tests.backends.wandb_reports import (
    CLASSES,
    HEIGHT,
    WIDTH,
    bitmap,
    found,
    named,
    reported,
    rows_of,
    scene,
    table_of,
)
from unified_tracker.backends._wandb_tracker import WandbTracker
from unified_tracker.predictions import Detections, SampleEvaluation, SampleImage, ValidationSample

Log = Callable[..., OfflineRun]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_dir: Path) -> Log:
    """Logs evaluations as steps 100, 200, ... of an offline run, and reads the run back."""
    clean_environment(monkeypatch, tmp_path)

    def all_of(*evaluations: SampleEvaluation, **options: Any) -> OfflineRun:
        tracker, feed = WandbTracker(info(tmp_path), run_dir, {"mode": "offline", **options}), Feeder(run_dir)
        tracker.open(info(tmp_path))
        for number, evaluation in enumerate(evaluations, 1):
            tracker.log_predictions(*reported(run_dir, feed, evaluation, 100 * number))
        tracker.close("FINISHED", TS)
        (folder,) = offline_folders(tmp_path / "work")
        return read_run(folder)

    return all_of


def one(run: OfflineRun, name: str) -> OfflineArtifact:
    (version,) = (each for each in run.artifacts if each.name == name)
    return version


def evaluation(folder: Path, images: int = 3, **more: Any) -> SampleEvaluation:
    return SampleEvaluation(scene(folder, images), {number: found(number) for number in range(images)}, **more)


# ---- what is found under which name ----------------------------------------------------------------------------


def test_the_sample_is_a_data_set_and_each_evaluation_a_version(log: Log, tmp_path: Path) -> None:
    run = log(evaluation(tmp_path), replace(evaluation(tmp_path), predictions={0: found(7)}))
    sample, first, second = run.artifacts
    assert (sample.name, sample.type) == ("shapes-val", "dataset")
    assert sample.metadata["images"] == 3 and len(sample.metadata["sample"]) >= 16
    assert {"annotations.json", "val_data.table.json", "images/0.jpg", "images/1.jpg"} <= set(sample.files)
    for version, step in [(first, 100), (second, 200)]:
        assert (version.name, version.type) == ("run-run0abcd-predictions", "result")
        assert set(version.aliases) == {"latest", "best", f"iter_{step}"}
        assert {"eval_data.table.json", "per_class.table.json", "index.html", "coco_results.json"} <= set(version.files)
        assert version.metadata["step"] == step
    assert list(table_of(sample, "val_data")["columns"])[:2] == ["image_name", "image"]
    columns = list(table_of(first, "eval_data")["columns"])
    assert columns[:4] == ["image_name", "ground_truth", "prediction", "image_id"]


def test_the_workspace_shows_tables_and_figures_at_their_step(log: Log, tmp_path: Path) -> None:
    run = log(evaluation(tmp_path), replace(evaluation(tmp_path), predictions={0: found(7)}))
    assert run.column("trainer/step") == [100, 200]
    shown = run.column("val/predictions")
    assert [(value["_type"], value["nrows"]) for value in shown] == [("table-file", 3), ("table-file", 1)]
    assert all(value["path"] in run.saved for value in shown)
    assert all(value["artifact_path"].endswith("/eval_data.table.json") for value in shown)
    assert shown[0]["artifact_path"] != shown[1]["artifact_path"]
    assert [value["nrows"] for value in run.column("val/predictions/per_class")] == [4, 4]
    assert [value["_type"] for value in run.column("val/predictions/confusion_matrix")] == ["image-file"] * 2


# ---- boxes, scores, masks --------------------------------------------------------------------------------------


def test_boxes_and_scores_are_equal_to_the_bit(log: Log, tmp_path: Path) -> None:
    given = evaluation(tmp_path)
    run = log(given)
    rows = {row["image_id"]: row for row in rows_of(table_of(one(run, "run-run0abcd-predictions"), "eval_data"))}
    assert set(rows) == {0, 1, 2}
    for number, detections in given.predictions.items():
        assert isinstance(detections, Detections)
        boxes = rows[number]["prediction"]["boxes"]["predictions"]
        positions = [[box["position"][side] for side in ("minX", "minY", "maxX", "maxY")] for box in boxes]
        order = np.argsort(-detections.scores, kind="stable")
        assert np.array_equal(np.array(positions), detections.boxes[order].astype(np.float64))
        scores = [box["scores"]["score"] for box in boxes]
        assert np.array_equal(np.array(scores), detections.scores[order].astype(np.float64))
        assert [box["class_id"] for box in boxes] == [1, 3, 2]
        assert {box["domain"] for box in boxes} == {"pixel"}
        assert [box["scores"]["error"] for box in boxes] == [0, 1, 1]
        assert boxes[1]["box_caption"].startswith(f"{CLASSES[2]} 0.7") and "wrong class" in boxes[1]["box_caption"]
        (missed,) = rows[number]["prediction"]["boxes"]["missed"]
        assert (missed["class_id"], missed["position"]["minX"]) == (2, 20.5)
        truth = rows[number]["ground_truth"]["boxes"]["ground_truth"]
        assert [box["class_id"] for box in truth] == [1, 2]


def test_masks_that_overlap_lie_in_layers_of_their_own_and_are_whole(log: Log, tmp_path: Path) -> None:
    truth = Detections([0, 0, 1], masks=[bitmap(0, 0, 20, 20), bitmap(20, 0, 30, 20), bitmap(10, 10, 40, 40)])
    sample = ValidationSample("shapes", CLASSES, [SampleImage("a", HEIGHT, WIDTH, truth=truth)])
    run = log(SampleEvaluation(sample, {"a": Detections([], masks=[], scores=[])}))
    version = one(run, "shapes-val")
    ((row,),) = [rows_of(table_of(version, "val_data"))]
    layers = {name: named(mask, version.files) for name, mask in row["image"]["masks"].items()}
    assert set(layers) == {"ground_truth", "ground_truth 2", "ground_truth 3"}  # touching, and overlapping
    for (name, value), mask in zip(
        [("ground_truth", 1), ("ground_truth 2", 1), ("ground_truth 3", 2)], truth.masks, strict=True
    ):
        assert np.array_equal(layers[name] == value, mask), name
    assert len(row["image"]["boxes"]["ground_truth"]) == 3  # around the masks


def test_masks_below_the_threshold_are_not_shown_and_boxes_are(log: Log, tmp_path: Path) -> None:
    run = log(evaluation(tmp_path, 1))
    version = one(run, "run-run0abcd-predictions")
    (row,) = rows_of(table_of(version, "eval_data"))
    files = {**one(run, "shapes-val").files, **version.files}
    union = sum((named(mask, files) > 0).astype(int) for mask in row["prediction"]["masks"].values())
    given = found(0)
    assert np.array_equal(union, given.masks[0].astype(int) + given.masks[1])
    assert len(row["prediction"]["boxes"]["predictions"]) == 3


def test_1203_classes_have_layers_of_255(log: Log, tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(1203)]
    labels = [0, 254, 255, 1202]
    masks = [bitmap(4 * number, 0, 4 * number + 3, 8) for number in range(4)]
    sample = ValidationSample("lvis", names, [SampleImage(1, HEIGHT, WIDTH, truth=Detections(labels, masks=masks))])
    run = log(SampleEvaluation(sample, {1: Detections(labels, masks=masks, scores=[0.9] * 4)}))
    version = one(run, "run-run0abcd-predictions")
    table = table_of(version, "eval_data")
    (row,) = rows_of(table)
    files = {**one(run, "lvis-val").files, **version.files}
    column = next(iter(table["column_types"]["params"]["type_map"]["prediction"]["params"]["allowed_types"]))
    maps = column["params"]["mask_class_maps"]["params"]["val"]
    shown = {}
    for layer, mask in row["prediction"]["masks"].items():
        pixels = named(mask, files)
        for value in np.unique(pixels[pixels > 0]):
            shown[maps[layer][str(value)]] = pixels == value
    assert set(shown) == {names[label] for label in labels}
    assert all(np.array_equal(shown[names[label]], mask) for label, mask in zip(labels, masks, strict=True))
    assert set(row["prediction"]["masks"]) == {
        "predictions, classes 1 to 255",
        "predictions, classes 256 to 510",
        "predictions, classes 1021 to 1203",
    }
    assert [box["class_id"] for box in row["prediction"]["boxes"]["predictions"]] == [1, 255, 256, 1203]


def test_panoptic_and_semantic_regions_have_layers_of_their_own(log: Log, tmp_path: Path) -> None:
    halves = [bitmap(0, 0, 32, HEIGHT), bitmap(32, 0, WIDTH, HEIGHT)]
    tasks = {"panoptic": Detections([0, 1], masks=halves), "semantic": Detections([1, 2], masks=halves)}
    said = {task: replace(each, scores=[0.8, 0.9]) for task, each in tasks.items()}
    sample = ValidationSample("shapes", CLASSES, [SampleImage(1, HEIGHT, WIDTH, truth=tasks)])  # type: ignore[arg-type]
    run = log(SampleEvaluation(sample, {1: said}))  # type: ignore[dict-item]
    version = one(run, "run-run0abcd-predictions")
    (row,) = rows_of(table_of(version, "eval_data"))
    files = {**one(run, "shapes-val").files, **version.files}
    assert set(row["prediction"]["masks"]) == {"predictions, panoptic", "predictions, semantic"}
    pixels = named(row["prediction"]["masks"]["predictions, semantic"], files)
    assert np.array_equal(pixels, np.where(halves[0], 2, 3))
    assert set(row["ground_truth"]["masks"]) == {"ground_truth, panoptic", "ground_truth, semantic"}
    assert row["f1"] == row["semantic_f1"] == 1


def test_keypoints_are_small_boxes_by_name(log: Log, tmp_path: Path) -> None:
    truth = Detections([0], [[4, 4, 24, 24]], keypoints=[[[5, 6, 2], [7, 8, 0]]])
    said = Detections([0, 0], [[4, 4, 24, 24]] * 2, [0.9, 0.1], keypoints=[[[5.5, 6, 0.7], [7, 8.25, 0.6]]] * 2)
    sample = ValidationSample(
        "people", ["person"], [SampleImage(1, HEIGHT, WIDTH, truth=truth)], keypoint_names=["nose", "ear"]
    )
    run = log(SampleEvaluation(sample, {1: said}))
    (row,) = rows_of(table_of(one(run, "run-run0abcd-predictions"), "eval_data"))
    true = row["ground_truth"]["boxes"]["ground_truth, keypoints"]
    assert [box["box_caption"] for box in true] == ["nose"]
    points = row["prediction"]["boxes"]["predictions, keypoints"]
    assert [(box["box_caption"], box["position"]["minY"]) for box in points] == [("nose", 4.0), ("ear", 6.25)]
    assert [box["scores"]["score"] for box in points] == [0.9, 0.9]


# ---- once ------------------------------------------------------------------------------------------------------


def test_pictures_are_on_the_disk_once(log: Log, tmp_path: Path, run_dir: Path) -> None:
    steps = [replace(evaluation(tmp_path), predictions={0: found(number)}) for number in range(4)]
    run = log(*steps)
    sample, *versions = run.artifacts
    assert len(versions) == 4
    originals = {path.read_bytes() for path in tmp_path.glob("*.jpg")}
    for version in versions:
        assert version.references == {}, "wandb sync may lose what refers to what is on its way"
        assert {"images/0.jpg", "images/1.jpg", "images/2.jpg"} <= set(version.files)
        for path in set(version.files) & set(sample.files):
            assert (version.files[path], version.digests[path]) == (sample.files[path], sample.digests[path])
        row = rows_of(table_of(version, "eval_data"))[0]
        for cell in (row["ground_truth"], row["prediction"]):
            masks = [mask["path"] for mask in cell["masks"].values()]
            assert {cell["path"], cell["classes"]["path"], *masks} <= set(version.files)
    kept = [path for path in run_dir.rglob("*") if path.is_file() and path.read_bytes() in originals]
    assert len(kept) == 3, "a picture is on the disk twice"
    assert not list((run_dir / "wandb").rglob("artifacts/staging/*"))


def test_a_replay_makes_the_same_run(log: Log, tmp_path: Path, run_dir: Path) -> None:
    def told(run: OfflineRun) -> Any:
        return [(each.name, each.digest, sorted(each.aliases), each.metadata) for each in run.artifacts]

    first = log(evaluation(tmp_path), replace(evaluation(tmp_path), predictions={0: found(7)}))
    files = {path: path.stat().st_mtime_ns for path in (run_dir / "wandb" / "media").iterdir()}
    second = log(evaluation(tmp_path), replace(evaluation(tmp_path), predictions={0: found(7)}))
    assert told(first) == told(second)
    assert {path: path.stat().st_mtime_ns for path in (run_dir / "wandb" / "media").iterdir()} == files
    assert [row["_step"] for row in second.rows] == [0, 1]


# ---- hard cases ------------------------------------------------------------------------------------------------


def test_empty_images_vanished_pictures_and_hostile_names(log: Log, tmp_path: Path) -> None:
    hostile = "../<script>alert(1)</script>\udcff\n气球.jpg"
    gone = picture = tmp_path / "gone.jpg"
    no_jpeg = tmp_path / "torn.jpg"
    no_jpeg.write_bytes(b"\xff\xd8 torn")
    images = [
        SampleImage("nobody has said", HEIGHT, WIDTH, gone, name=hostile),
        SampleImage("nothing there", HEIGHT, WIDTH, picture, truth=Detections([], [])),
        SampleImage("torn", HEIGHT, WIDTH, no_jpeg, truth=Detections([1], [[1, 2, 3, 4]])),
        SampleImage("not evaluated", HEIGHT, WIDTH, truth=Detections([1], [[1, 2, 3, 4]])),
    ]
    nothing = Detections([], [], [])
    odd = Detections([0, 1], [[1, np.nan, 3, np.inf], [1, 2, 3, 4]], [0.5, np.nan])
    said = {"nobody has said": odd, "nothing there": nothing, "torn": nothing}
    names = ["<b>bold</b>", "a\udcffb"]
    run = log(SampleEvaluation(ValidationSample(hostile, names, images), said, split="../../val"))
    sample, version = run.artifacts
    rows = {row["image_id"]: row for row in rows_of(table_of(version, "eval_data"))}
    assert next(iter(rows)) == "torn", "the worst is not first"
    assert set(rows) == {"nobody has said", "nothing there", "torn"}
    assert rows["nobody has said"]["f1"] is None and rows["nothing there"]["f1"] == 1 and rows["torn"]["f1"] == 0
    assert "script" in rows["nobody has said"]["image_name"]
    assert [box["box_caption"] for box in rows["nobody has said"]["prediction"]["boxes"]["predictions"]] == ["a?b nan"]
    assert rows["nothing there"]["prediction"]["boxes"]["predictions"] == []
    assert "cannot be read" in rows["torn"]["note"] and rows["torn"]["prediction"]["caption"] == rows["torn"]["note"]
    for row in rows_of(table_of(sample, "val_data")):
        with Image.open(sample.files[row["image"]["path"]]) as opened:
            assert opened.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("turned", [True, False], ids=["as the frameworks read it", "orientation ignored"])
def test_pictures_stand_as_their_boxes_are_meant(log: Log, tmp_path: Path, turned: bool) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).save(path, exif=exif)
    deep = tmp_path / "deep.png"
    Image.fromarray((np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 20).astype(np.uint16)).save(deep)
    size = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
    images = [
        SampleImage(0, *size, path),
        SampleImage(1, HEIGHT, WIDTH, deep),
        SampleImage(2, 8, 16, pixels=np.full((8, 16), 7, np.uint8)),
    ]
    run = log(SampleEvaluation(ValidationSample("odd", CLASSES, images), {}))
    sample = one(run, "odd-val")
    first, second, third = rows_of(table_of(sample, "val_data"))
    assert (first["image"]["path"] == "images/turned.jpg") == turned
    for row in (first, second, third):
        with Image.open(sample.files[row["image"]["path"]]) as opened:
            seen = (opened.height, opened.width) if opened.getexif().get(0x0112, 1) == 6 else opened.size
            assert seen == (row["width"], row["height"]) == (row["image"]["width"], row["image"]["height"])
            assert opened.mode in {"L", "RGB"}
        assert row["note"] is None


def test_an_evaluation_without_any_image_is_stored(log: Log, tmp_path: Path) -> None:
    run = log(SampleEvaluation(ValidationSample("none", [], []), {}))
    assert rows_of(table_of(one(run, "run-run0abcd-predictions"), "eval_data")) == []
    assert json.dumps(run.column("val/predictions"))


def test_masks_beyond_the_layers_are_counted(log: Log, tmp_path: Path) -> None:
    masks = [bitmap(0, 0, 10, 10)] * 12
    truth = Detections([0] * 12, masks=masks)
    sample = ValidationSample("pile", CLASSES, [SampleImage(1, HEIGHT, WIDTH, truth=truth)])
    run = log(SampleEvaluation(sample, {}))
    (row,) = rows_of(table_of(one(run, "pile-val"), "val_data"))
    assert len(row["image"]["masks"]) == 8 and row["note"].endswith(
        "4 masks that overlap too many others are not shown"
    )
