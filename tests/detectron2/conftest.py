"""Real Detectron2 trainings, each once a session."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: run `nox -s frameworks`")

PROGRAM = Path(__file__).with_name("train.py")
ITERATIONS = 25


@dataclass(frozen=True)
class Training:
    """A finished training process."""

    output: Path
    work_dir: Path
    uri: str
    code: int
    text: str
    said: dict[str, Any]


def train(data: Path, output: Path, timeout_s: float = 180, **wish: Any) -> Training:
    """Run one training in `output` and wait for it; MLflow stands in `output/mlflow.db`."""
    output.mkdir(parents=True, exist_ok=True)
    wish = {"data": str(data), "output": str(output), "iterations": ITERATIONS, **wish}
    wish["opts"] = [
        "TEST.EVAL_PERIOD",
        10,
        "SOLVER.CHECKPOINT_PERIOD",
        10,
        "SOLVER.IMS_PER_BATCH",
        2,
        *wish.get("opts", []),
    ]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(wish)],
        cwd=output,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1:] or [""]
    said = json.loads(last[0]) if last[0].startswith("{") else {}
    text = done.stdout + done.stderr
    return Training(output, output / "detectron2", f"sqlite:///{output / 'mlflow.db'}", done.returncode, text, said)


@pytest.fixture(scope="session")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Both backends at once; 25 iterations, evaluation and checkpoint every 10, BestCheckpointer besides."""
    opts = ["TRACKER.INTERVAL", 20, "SOLVER.BASE_LR", 0.02, "TRACKER.MLFLOW.REGISTERED_MODEL_NAME", "shapes"]
    return train(shapes, tmp_path_factory.mktemp("trained"), trackers=["mlflow", "wandb"], opts=opts)
