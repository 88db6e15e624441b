"""MLflow's store of text files, which appends whatever it is given: nothing in it recognises a row that comes again."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import WAIT_S, append, finished, processes_of, recorded, state, wait_until
from tests.faults.exactness import assert_exact, only_run
from unified_tracker._staging import Staging
from unified_tracker.records import Artifact, Metrics, Params

ROUNDS = range(int(os.environ.get("FAULTS_ROUNDS", "1")))


@pytest.mark.parametrize("round_number", ROUNDS)
def test_every_row_stands_once_in_a_store_of_files_although_the_uploader_is_killed_while_it_writes(
    round_number: int, tmp_path: Path, uploaders: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store, dice = (tmp_path / "mlruns").as_uri(), random.Random(round_number)
    rows = [Metrics(1000 + i, i, {"a": float(i), "b": math.nan if i % 7 == 0 else 0.5}) for i in range(4000)]
    run_dir = recorded(tmp_path, store, [Params(900, {"lr": 0.02}), *rows])
    path = tmp_path / "model.pth"
    path.write_bytes(b"weights")
    held = Staging(run_dir, 1).hold(path, path.name, "copy")
    append(run_dir, Artifact(9000, "run-abcd1234-model", "model", (held,), (), {}, {"a": 3999.0}, 3999), finished())
    for _ in range(3):
        uploader = uploaders(run_dir)
        before = state(run_dir).read
        wait_until(lambda before=before: state(run_dir).read > before or state(run_dir).done)
        time.sleep(dice.random())
        uploader.kill()
        uploader.wait(WAIT_S)
        wait_until(lambda: not processes_of(run_dir))
    assert uploaders(run_dir).wait(WAIT_S) == 0
    assert_exact(store, run_dir)
    assert only_run(store, run_dir).data.tags["unified_tracker.delivery"] == "complete"
