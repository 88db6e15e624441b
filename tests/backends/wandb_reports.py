"""Reports of evaluations for W&B's tests: small scenes, and what W&B stored of them, read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from tests.backends.wandb_files import OfflineArtifact
from unified_tracker.predictions import Detections, SampleEvaluation, SampleImage, ValidationSample
from unified_tracker.predictions._analysis import show_evaluation, show_sample
from unified_tracker.predictions._sheets import decode_predictions, decode_sample
from unified_tracker.predictions._writer import SampleWriter
from unified_tracker.records import Artifact, Predictions, StagedFile

TS = 1_700_000_000_000
HEIGHT, WIDTH = 48, 64
CLASSES = ["balloon", "kite", "ünïcode 气球"]


def bitmap(*box: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask that is a filled box."""
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def picture_file(path: Path, seed: int, height: int = HEIGHT, width: int = WIDTH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


class FakeReport:
    """What the lane makes of an evaluation, without its pages and figures."""

    def __init__(
        self,
        run_dir: Path,
        evaluation: SampleEvaluation,
        step: int = 100,
        aliases: Sequence[str] = ("best",),
        run_id: str = "run0abcd",
    ) -> None:
        self._run_dir, self._run_id = run_dir, run_id
        sample, file, refused = SampleWriter(self).write(evaluation)  # type: ignore[arg-type]
        assert refused == []
        self.record = Predictions(
            TS, step, None, evaluation.split, evaluation.sample.dataset, sample, file, tuple(aliases)
        )
        self.sample_digest = Path(sample.staged).stem
        self.sample = decode_sample((run_dir / sample.staged).read_bytes())
        self.predictions = decode_predictions((run_dir / file.staged).read_bytes())
        self.images = show_sample(self.sample)
        self.evaluation = show_evaluation(
            self.sample, self.predictions, id=str(step), label=f"iter {step}", run=run_id, step=step, epoch=None
        )
        folder = run_dir / "predictions" / f"{evaluation.split}-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        self.page, self.results, self.parquet = folder / "index.html", folder / "coco_results.json", None
        self.page.write_text(f"<p>page of step {step}")
        self.results.write_text(f"[{step}]")
        self.figures = {"confusion": folder / "confusion.png"}
        Image.new("RGB", (8, 8), (step % 255, 0, 0)).save(self.figures["confusion"])

    def keep(self, name: str, content: bytes) -> StagedFile:
        path = self._run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return StagedFile(name, name, len(content), 0)

    @property
    def files(self) -> dict[str, Path]:
        return {"index.html": self.page, "coco_results.json": self.results}

    @property
    def sample_files(self) -> dict[str, Path]:
        annotations = self._run_dir / "predictions" / "annotations.json"
        annotations.write_text(json.dumps([image.name for image in self.sample.images]))
        kept = {f"images/{image.id}.jpg": self.image_file(image.id) for image in self.sample.images}
        return {"annotations.json": annotations, **{name: path for name, path in kept.items() if path}}

    def image_file(self, image_id: Any) -> Path | None:
        (image,) = (each for each in self.sample.images if each.id == image_id)
        path = self._run_dir / image.file
        return path if image.file and path.exists() else None

    @property
    def artifact(self) -> Artifact:
        name = f"run-{self._run_id}-predictions"
        metrics = dict(self.predictions.metrics)
        return Artifact(TS, name, "result", (), self.record.aliases, {"split": "val"}, metrics, self.record.step)


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
