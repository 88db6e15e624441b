"""The whole way of a detector, as the example goes it: both frameworks, each with one of the backends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES, run_program

CHAIN = EXAMPLES / "workflow" / "chain.py"
SHORT = ("--steps", "3", "--epochs", "1", "--size", "64")


def went(folder: Path, *arguments: str) -> tuple[str, dict[str, str]]:
    done = run_program(CHAIN, "--output", "chain", *SHORT, *arguments, cwd=folder, limit_s=600)
    assert done.code == 0, done.err[-3000:] + done.out[-3000:]
    return done.out, json.loads(done.out.splitlines()[-1])


def trees(said: str) -> list[str]:
    """What `artifact lineage` has printed."""
    return re.findall(r"artifact lineage [^\n]*\n(.*?)\n\n", said, re.DOTALL)


def stages(tree: str) -> list[str]:
    return re.findall(r"made by [\w\- ]+ \[(\w+)\]", tree)


@pytest.mark.timeout(700)
def test_detectron2_with_mlflow_up_to_an_answer_over_http(tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    said, runs = went(tmp_path, "--framework", "detectron2", "--tracker", "mlflow", "--serve")
    up, down = trees(said)
    assert stages(up) == [runs["third"], runs["second"], runs["first"]]
    assert up.count("train: mlflow-artifact://chain/chain-train:v0") == 3
    assert "test/bbox/mAP" in down
    assert f"used as weights by fine-tuned [{runs['second']}]" in down
    assert "00001.jpg: 100 detections" in said


@pytest.mark.timeout(700)
def test_mmdetection_with_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    said, runs = went(tmp_path, "--framework", "mmdetection", "--tracker", "wandb")
    up, down = trees(said)
    assert stages(up) == [runs["third"], runs["second"], runs["first"]]
    assert up.count("train: wandb-artifact://chain/chain-train:v0") == 3
    assert "evaluated by evaluated" in down
    assert f"used as weights by fine-tuned [{runs['second']}]" in down
