"""The example for a plain loop, as a user runs it, read back through MLflow's client."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES, Program, run_program
from tests.mlflow_reading import MlflowRun

PROGRAM = EXAMPLES / "plain_pytorch" / "train.py"
ITERATIONS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(scope="module")
def done(folder: Path) -> Program:
    finished = run_program(PROGRAM, "--iterations", str(ITERATIONS), cwd=folder)
    assert finished.code == 0, finished.err
    return finished


@pytest.fixture(scope="module")
def stored(folder: Path, done: Program) -> MlflowRun:
    return MlflowRun(f"sqlite:///{folder / 'mlflow.db'}", done.out.split()[-1])


def test_the_run_is_finished_and_named(stored: MlflowRun) -> None:
    assert stored.status == "FINISHED"
    assert stored.run.info.run_name == "count shapes"
    assert stored.params["lr"] == "0.003"


def test_every_iteration_has_its_loss(stored: MlflowRun, done: Program) -> None:
    losses = stored.history("train/loss")
    assert [step for step, _ in losses] == list(range(1, ITERATIONS + 1))
    printed = {int(step): value for step, value in re.findall(r"step (\d+): loss (\S+),", done.out)}
    assert {step: f"{value:.3f}" for step, value in losses if step in printed} == printed


def test_the_checkpoints_have_the_bytes_of_the_files(stored: MlflowRun, folder: Path) -> None:
    files = [folder / "plain-pytorch-output" / f"model_{step:04d}.pth" for step in (20, 40)]
    expected = [{path.name: hashlib.sha256(path.read_bytes()).hexdigest()} for path in files]
    assert [stored.model_files(model) for model in stored.models()] == expected
    assert stored.model_aliases()["latest"] == "40"


def test_off_trains_without_a_trace(tmp_path: Path) -> None:
    finished = run_program(PROGRAM, "--iterations", "20", cwd=tmp_path, UNIFIED_TRACKER="off")
    assert finished.code == 0, finished.err
    assert [path.name for path in tmp_path.iterdir()] == ["plain-pytorch-output"]
    assert not (tmp_path / "plain-pytorch-output" / "unified-tracker").exists()
