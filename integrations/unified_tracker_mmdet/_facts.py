"""What a runner is about to do, as plain values: configuration, effective settings, sizes, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner import IterBasedTrainLoop, Runner


class TrainingSizes:
    """How many iterations and images make an epoch. Reads the built training loop.

    Attributes:
        images: Images an iteration, over all processes; None if unknown.
        dataset: Images in the training set; None if unknown.
        loader: Iterations that the data loader has.
    """

    def __init__(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        batch = getattr(loader, "batch_size", None) or getattr(loader.batch_sampler, "batch_size", None)
        self.images: int | None = batch * runner.world_size if isinstance(batch, int) else None
        self.dataset = _length(getattr(loader, "dataset", None))
        self.loader = _length(loader)
        self._by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)

    def epoch(self, step: int) -> float | None:
        """Completed epochs after so many iterations, fractional."""
        if self._by_epoch:
            return step / self.loader if self.loader else None
        return step * self.images / self.dataset if self.images and self.dataset else None

    @property
    def by_epoch(self) -> bool:
        """Whether the loop counts epochs."""
        return self._by_epoch


def configuration(runner: Runner) -> dict[str, Any]:
    """The whole configuration as nested built-in values."""
    return dict(runner.cfg.to_dict())


def configuration_file(runner: Runner) -> tuple[str, str] | None:
    """Name and text of the file into which the runner has dumped its configuration."""
    name = Path(runner.cfg.filename).name if runner.cfg.filename else f"{runner.timestamp}.py"
    path = Path(runner.work_dir) / name
    return (name, path.read_text(encoding="utf-8")) if path.is_file() else None


def effective_training(runner: Runner, sizes: TrainingSizes) -> dict[str, Any]:
    """The values that hold after defaults, scaling and launching."""
    groups = getattr(runner.optim_wrapper, "param_groups", None)
    first = groups[0] if isinstance(groups, list) and groups else {}
    return {
        "framework": "mmdetection",
        "world_size": runner.world_size,
        "seed": runner.seed,
        "lr": first.get("initial_lr", first.get("lr")),  # schedulers with a warm-up have changed "lr" already
        "optim_wrapper": type(runner.optim_wrapper).__name__,
        "train_loop": type(runner.train_loop).__name__,
        "max_epochs": runner.max_epochs if sizes.by_epoch else None,
        "max_iters": runner.max_iters,
        "start_iter": runner.iter,
        "images_per_iteration": sizes.images,
        "training_images": sizes.dataset,
    }


def effective_evaluation(runner: Runner, loaded: tuple[int, int] | None) -> dict[str, Any]:
    """The same for a runner that only evaluates.

    Args:
        runner: The runner.
        loaded: Iteration and epoch of the checkpoint that it has loaded.
    """
    return {
        "framework": "mmdetection",
        "world_size": runner.world_size,
        "seed": runner.seed,
        "checkpoint": runner.cfg.get("load_from"),
        "checkpoint_iter": loaded[0] if loaded else None,
    }


def checkpoint_hook(runner: Runner) -> CheckpointHook | None:
    """The hook that writes checkpoints."""
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def loader(runner: Runner, split: str) -> Any:
    """The loader of "train", "val" or "test", if it is built; asking the runner would build it."""
    return getattr(getattr(runner, f"_{split}_loop", None), "dataloader", None)


def class_names(loader: Any) -> Sequence[str]:
    """Names of the classes of a data loader's data set; empty if it has none."""
    meta = getattr(getattr(loader, "dataset", None), "metainfo", None) or {}
    return [str(name) for name in meta.get("classes") or ()]


def log_files(runner: Runner, suffixes: Sequence[str]) -> list[Path]:
    """Logs and results of this run: the work folder also holds those of earlier ones."""
    folder = Path(runner.log_dir)
    found = [*sorted(folder.glob("*.*")), folder / "vis_data" / "scalars.json"]
    return [path for path in found if path.is_file() and path.name.endswith(tuple(suffixes))]


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:
        return None
