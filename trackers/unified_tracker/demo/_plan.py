"""The demo's plan: what is trained, where to, and how the training reports its progress to the terminal."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from unified_tracker.demo.shapes import ShapesDataset, make_shapes

Framework = Literal["detectron2", "mmdetection"]

PROJECT: Final = "unified-tracker-demo"
ITERATIONS: Final = 120
EVALUATE_EVERY: Final = 30
BATCH: Final = 4
TRAIN_IMAGES: Final = 120  # 30 iterations of 4 images are an epoch
VAL_IMAGES: Final = 24
SIZE: Final = 128
SEED: Final = 7


class Plan(msgspec.Struct, frozen=True):
    """One demo training, as the terminal hands it to the process that trains.

    Attributes:
        framework: Which one trains.
        trackers: Backends by name.
        options: Backend name to options.
        output: Folder of the demo; everything that is written is below it.
        iterations: Optimiser iterations.
    """

    framework: Framework
    trackers: tuple[str, ...]
    options: dict[str, dict[str, str]]
    output: str
    iterations: int = ITERATIONS

    @property
    def work_dir(self) -> Path:
        """Where the framework writes its log and checkpoints."""
        return Path(self.output) / self.framework

    @property
    def run_name(self) -> str:
        """As the backends show it."""
        return f"demo, {self.framework}"

    def data(self) -> tuple[ShapesDataset, ShapesDataset]:
        """Generate the training and the validation split, the same ones every time."""
        folder = Path(self.output) / "shapes"
        return (
            make_shapes(folder, split="train", images=TRAIN_IMAGES, size=SIZE, seed=SEED),
            make_shapes(folder, split="val", images=VAL_IMAGES, size=SIZE, seed=SEED),
        )


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of what the training process says about itself.

    Attributes:
        phase: "loading", "training", "evaluating", "delivering".
        step: Completed iterations.
        loss: Of that step.
    """

    phase: str
    step: int = 0
    loss: float | None = None


class Reporter:
    """The training's end of the pipe to the terminal. A terminal that has gone is no reason to stop."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last_s = 0.0

    def say(self, progress: Progress) -> None:
        """Send one line."""
        try:
            os.write(self._fd, msgspec.json.encode(progress) + b"\n")
        except OSError:
            return

    def step(self, step: int, loss: float) -> None:
        """Send a training step, at most ten a second."""
        now = time.monotonic()
        if now - self._last_s > 0.1:
            self._last_s = now
            self.say(Progress("training", step, loss))
