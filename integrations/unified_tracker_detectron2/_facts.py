"""What a training or an evaluation consists of, as plain values: effective settings, sizes, files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from unified_tracker._origins import step_of
from unified_tracker_detectron2._config import initial_weights

FILES: Final = ("log.txt", "metrics.json")
RESULTS: Final = ("*results*.json", "inference/**/*results*.json")  # where evaluators are usually told to write
WEIGHTS: Final = re.compile(r"model_(\d{7})\.pth")  # as `PeriodicCheckpointer` names them


class TrainingSizes:
    """How many images make an iteration and an epoch.

    Attributes:
        images: Images an iteration, over all processes; None if unknown.
        dataset: Images in the training set; None if unknown.
    """

    def __init__(self, trainer: Any = None, cfg: Any = None) -> None:
        """Read them from the loader and the configuration, as far as there are any."""
        self.images: int | None = None
        self.dataset: int | None = None
        loader = getattr(getattr(trainer, "_trainer", trainer), "data_loader", None)
        if isinstance(cfg, CfgNode) and "SOLVER" in cfg:
            self.images = int(cfg.SOLVER.IMS_PER_BATCH)
        elif isinstance(batch := getattr(loader, "batch_size", None), int):
            self.images = batch * comm.get_world_size()
        while loader is not None and self.dataset is None:
            loader = getattr(loader, "dataset", None)
            try:
                self.dataset = len(loader)  # type: ignore[arg-type]  # what has no length raises
            except TypeError:
                continue

    def epoch(self, step: int) -> float | None:
        """Completed epochs after so many iterations, fractional."""
        return step * self.images / self.dataset if self.images and self.dataset else None


def effective_training(trainer: Any, cfg: Any, sizes: TrainingSizes) -> dict[str, Any]:
    """The values that hold after defaults, scaling and launching."""
    optimizer = getattr(getattr(trainer, "_trainer", trainer), "optimizer", None)
    groups = getattr(optimizer, "param_groups", [])
    return {
        "framework": "detectron2",
        "world_size": comm.get_world_size(),
        "seed": cfg.get("SEED") if isinstance(cfg, CfgNode) else None,
        "lr": groups[0].get("initial_lr", groups[0]["lr"]) if groups else None,
        "max_iter": trainer.max_iter,
        "start_iter": trainer.start_iter,
        "images_per_iteration": sizes.images,
        "training_images": sizes.dataset,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def effective_evaluation(*configs: Any) -> dict[str, Any]:
    """The same for a process that only evaluates."""
    return {
        "framework": "detectron2",
        "world_size": comm.get_world_size(),
        "checkpoint": initial_weights(*configs) or None,
    }


def step_of_weights(*configs: Any) -> int:
    """Completed iterations of the weights that a configuration names.

    What a tracked checkpoint says itself, else what the name of the file says, else 0.
    """
    weights = initial_weights(*configs)
    tracked = step_of(weights)
    if tracked is not None:
        return tracked
    found = WEIGHTS.fullmatch(weights.rpartition("/")[2])
    return int(found[1]) + 1 if found else 0


def log_files(folder: Path | None) -> list[Path]:
    """Logs and results that Detectron2 has written."""
    if folder is None:
        return []
    return [*(folder / name for name in FILES), *(path for where in RESULTS for path in sorted(folder.glob(where)))]
