"""Real MMDetection trainings, each once a session."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmdet", reason="MMDetection is not installed: run `nox -s frameworks`")

from unified_tracker._rundir import find_runs

PROGRAM = Path(__file__).with_name("train.py")
SCORES = [0.2, 0.5, 0.4, 0.6, 0.1]  # of the metric `Odd`, evaluation by evaluation
EPOCHS, ITERATIONS = 5, 4  # iterations an epoch


@dataclass(frozen=True)
class Training:
    """A finished training process."""

    output: Path
    uri: str
    code: int
    text: str
    said: dict[str, Any]

    @property
    def work_dir(self) -> Path:
        return self.output / "work"

    @property
    def run_id(self) -> str:
        """Of the only run; a process that was killed has not said it."""
        (directory,) = find_runs(self.output)
        return directory.path.name

    def log(self, *, training: bool = True) -> list[dict[str, Any]]:
        """Rows of the training, or of the evaluations, in MMEngine's own `scalars.json`."""
        text = (Path(self.said["log_dir"]) / "vis_data" / "scalars.json").read_text()
        return [row for row in map(json.loads, text.splitlines()) if ("loss" in row) == training]


def train(data: Path, output: Path, launcher: Sequence[str] = (), timeout_s: float = 240, **wish: Any) -> Training:
    """Run one training in `output` and wait for it; MLflow stands in `output/mlflow.db`."""
    output.mkdir(parents=True, exist_ok=True)
    wish = {"data": str(data), "output": str(output), **wish}
    done = subprocess.run(
        [sys.executable, *launcher, str(PROGRAM), json.dumps(wish)],
        cwd=output,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    last = [line for line in done.stdout.splitlines() if line.startswith('{"run_id"')][-1:]
    said = json.loads(last[0]) if last else {}
    return Training(output, f"sqlite:///{output / 'mlflow.db'}", done.returncode, done.stdout + done.stderr, said)


def deliver(training: Training) -> None:
    """Deliver in the foreground what a killed training has left."""
    (directory,) = find_runs(training.output)
    for _ in range(60):
        command = [sys.executable, "-m", "unified_tracker._uploader", str(directory.path)]
        if subprocess.run(command, cwd=training.output, timeout=120, check=False).returncode == 0:
            return
    raise AssertionError(f"{directory.path} was not delivered")


@pytest.fixture(scope="session")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Training, then test: both backends, one checkpoint kept, a row of every second iteration."""
    rules = [
        {"data_src": "loss", "log_name": "loss_epoch", "method_name": "max", "window_size": "epoch"},
        {"data_src": "loss_cls", "method_name": "mean", "window_size": 3},
    ]
    checkpoints = {
        "type": "CheckpointHook",
        "interval": 1,
        "max_keep_ckpts": 1,
        "save_best": "odd/score",
        "rule": "greater",
    }
    return train(
        shapes,
        tmp_path_factory.mktemp("trained"),
        epochs=EPOCHS,
        odd=True,
        steps=["train", "test"],
        more_hooks=[{"type": "Keeper"}],
        hook={
            "tracker": ["mlflow", "wandb"],
            "init_kwargs": {"project": "shapes", "name": "first", "job_type": "train"},
        },
        set={
            "default_hooks.checkpoint": {"_delete_": True, **checkpoints},
            "log_processor": {"type": "LogProcessor", "window_size": 5, "by_epoch": True, "custom_cfg": rules},
            "optim_wrapper.clip_grad": {"max_norm": 10.0},
        },
    )


@pytest.fixture(scope="session")
def ended_early(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Training]:
    """One training for each way of ending early, in the sixth iteration, two at a time."""

    def end(kind: str) -> Training:
        trouble = {"type": "Trouble", "kind": kind, "at": 6}
        keep = {"default_hooks.checkpoint.interval": 1, "resume": True}
        return train(shapes, tmp_path_factory.mktemp(kind), epochs=2, more_hooks=[trouble], set=keep)

    kinds = ["raise", "interrupt", "terminate", "kill"]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(kinds, pool.map(end, kinds), strict=True))
