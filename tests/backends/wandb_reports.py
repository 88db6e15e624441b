"""Reports of evaluations for W&B's tests: small scenes, and what W&B stored of them, read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from tests.backends.wandb_feeding import TS, Feeder, info
from tests.backends.wandb_files import OfflineArtifact
from unified_tracker._rundir import RunDirectory
from unified_tracker._staging import Staging
from unified_tracker._tracker import RunInfo
from unified_tracker.predictions import Detections, SampleEvaluation, SampleImage, ValidationSample
from unified_tracker.predictions._report import PredictionReport
from unified_tracker.predictions._writer import SampleWriter
from unified_tracker.records import Entry, Predictions

HEIGHT, WIDTH = 48, 64
CLASSES = ["balloon", "kite", "ünïcode 气球"]


def bitmap(*box: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask that is a filled box."""
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def picture_file(path: Path, seed: int, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """A picture, once: written again it would be another one."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


def reported(
    run_dir: Path, feed: Feeder, evaluation: SampleEvaluation, step: int = 100, run: RunInfo | None = None
) -> tuple[Entry, PredictionReport]:
    """An evaluation as the lane passes it on."""
    directory = RunDirectory(run_dir)
    directory.create(run or info(run_dir.parent))
    sample, file, refused = SampleWriter(Staging(run_dir, 1)).write(evaluation)
    assert refused == []
    dataset = sample_name(evaluation)
    entry = feed.entry(Predictions(TS, step, None, evaluation.split, dataset, sample, file, ("best",)))
    return entry, PredictionReport(directory, entry)


def sample_name(evaluation: SampleEvaluation) -> str:
    return evaluation.sample.dataset.encode("utf-8", "replace").decode()


# ---- scenes ----------------------------------------------------------------------------------------------------


def scene(folder: Path, images: int = 3, **more: Any) -> ValidationSample:
    """Images with two objects each: a balloon and a kite that overlap, with masks."""
    truth = Detections(
        labels=[0, 1],
        boxes=[[4, 4, 24, 24], [20.5, 10, 44, 30]],
        masks=[bitmap(4, 4, 24, 24), bitmap(20, 10, 44, 30)],
    )
    shown = [
        SampleImage(number, HEIGHT, WIDTH, picture_file(folder / f"{number}.jpg", number), truth=truth)
        for number in range(images)
    ]
    return ValidationSample("shapes", CLASSES, shown, **more)


def found(number: int = 0) -> Detections:
    """Three predictions: a right one, one of the wrong class, and one below the threshold where nothing is."""
    rng = np.random.default_rng(number)
    boxes = np.array([[4, 4, 24, 24], [20, 10, 44, 30], [50, 30, 60, 40]], np.float32)
    boxes += rng.random((3, 4), np.float32)
    masks = [bitmap(4, 4, 25, 24), bitmap(20, 10, 44, 31), bitmap(50, 30, 60, 40)]
    return Detections([0, 2, 1], boxes, np.array([0.9, 0.8, 0.1], np.float32) - rng.random(3, np.float32) / 20, masks)


# ---- what was stored -------------------------------------------------------------------------------------------


def rows_of(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def table_of(version: OfflineArtifact, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(version.files[f"{name}.table.json"].read_bytes())
    return found


def named(mask: Mapping[str, str], files: Mapping[str, Path]) -> np.ndarray:
    """The pixels of a mask layer; its file is the one that the cell names."""
    content = files[mask["path"]].read_bytes()
    assert hashlib.sha256(content).hexdigest() == mask["sha256"]
    with Image.open(files[mask["path"]]) as opened:
        assert opened.mode == "L"
        return np.asarray(opened)


def decoded(counts: bytes | str, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    encoded = counts.encode() if isinstance(counts, str) else counts
    return coco.decode({"size": [height, width], "counts": encoded}).astype(bool)
