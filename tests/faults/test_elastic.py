"""Several processes train; one dies, and the launcher starts them all again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import IMPATIENT, WAIT_S, state, wait_until
from tests.faults.exactness import assert_exact, journal, only_run
from unified_tracker.records import Metrics, Started

pytest.importorskip("torch.distributed.run")


@pytest.mark.parametrize("victim", ["0", "1"], ids=["rank that records", "another rank"])
def test_a_training_that_is_started_again_after_a_rank_was_killed_is_one_run(
    victim: str, server: str, tmp_path: Path
) -> None:
    """Nothing hangs, the second attempt goes on in the same run, and repeated steps are rows of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=1"]
    project = f"{tmp_path.parent.name}-{tmp_path.name}"
    training = [str(Path(__file__).with_name("elastic.py")), str(tmp_path), server, project, victim]
    environment = {**os.environ, **IMPATIENT, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *training], cwd=tmp_path, env=environment, timeout=WAIT_S, check=False)
    assert done.returncode == 0
    (run_dir,) = (path for path in (tmp_path / "unified-tracker").iterdir() if path.is_dir())
    wait_until(lambda: state(run_dir).done)
    records = [entry.record for entry in journal(run_dir)]
    assert [record.attempt for record in records if isinstance(record, Started)] == [1, 2]
    steps = [record.step for record in records if isinstance(record, Metrics)]
    first = steps[: steps.index(11, 11)]
    assert first in (list(range(1, 21)), list(range(1, 22)))  # the recording rank may be one step ahead of the victim
    assert steps[len(first) :] == list(range(11, 31))
    assert_exact(server, run_dir)
    assert only_run(server, run_dir).info.status == "FINISHED"
