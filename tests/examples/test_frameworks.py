"""The examples of both frameworks, and the code in the README, as a user runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES, run_program
from tests.mlflow_reading import MlflowRun
from unified_tracker._rundir import find_runs

README = EXAMPLES.parent / "README.md"
DOCS = [README, *sorted((EXAMPLES.parent / "docs").glob("*.md"))]


def only_run(folder: Path) -> MlflowRun:
    (directory,) = find_runs(folder)
    return MlflowRun(f"sqlite:///{folder / 'mlflow.db'}", directory.path.name)


def test_detectron2_example(tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    program = EXAMPLES / "detectron2" / "train.py"
    # A model that has hardly trained may find nothing that it is sure of, and is then not evaluated at all.
    overrides = ("TRACKER.INTERVAL", "1", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    done = run_program(program, "--iterations", "3", "--size", "64", *overrides, cwd=tmp_path)
    assert done.code == 0, done.err
    run = only_run(tmp_path)
    assert [step for step, _ in run.history("train/loss")] == [1, 2, 3]
    assert [step for step, _ in run.history("val/segm/mAP")] == [1, 2, 3]
    assert run.model_aliases()["latest"] == "3"
    assert run.status == "FINISHED"


def test_mmdetection_example(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    overrides = ("--cfg-options", "model.test_cfg.rcnn.score_thr=0.0")
    program = EXAMPLES / "mmdetection" / "train.py"
    done = run_program(program, "--epochs", "1", "--size", "64", *overrides, cwd=tmp_path)
    assert done.code == 0, done.err
    run = only_run(tmp_path)
    assert len(run.history("val/segm/mAP")) == 1
    assert {"latest", "epoch_1"} <= set(run.model_aliases())
    assert run.status == "FINISHED"


def test_the_readmes_plain_loop_runs(tmp_path: Path) -> None:
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "start_run" in block
    )
    (tmp_path / "loop.py").write_text(code)
    done = run_program(tmp_path / "loop.py", cwd=tmp_path)
    assert done.code == 0, done.err
    assert only_run(tmp_path).history("train/loss") == [(step, 1 / step) for step in (1, 2, 3)]


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_code_in_the_documentation_compiles_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, page.name, "exec")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
