"""Random faults and kills while thousands of rows are delivered. Seeds and counts can be raised for a long session."""

from __future__ import annotations

import math
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import pytest

from tests.faults.conftest import WAIT_S, finished, kill, processes_of, recorded, state, wait_until
from tests.faults.exactness import LARGEST, Row, assert_exact, only_run
from tests.faults.exactness import row as stored_row
from tests.faults.proxy import FaultProxy
from unified_tracker.records import Metrics, Record, Tags

SEEDS = range(int(os.environ.get("FAULTS_SEEDS", "1")))
ROWS = int(os.environ.get("FAULTS_ROWS", "3000"))
KILLS = int(os.environ.get("FAULTS_KILLS", "4"))
REFUSED_TS = -5  # MLflow takes no moment before 1970: the whole request that holds one is refused


def rows(seed: int) -> tuple[list[Record], Counter[Row]]:
    """At least `ROWS` values with 10 % NaN and 2 % infinities, tags between them, and one that MLflow refuses."""
    dice = random.Random(seed)
    records: list[Record] = []
    count = step = 0
    while count < ROWS:
        values = {f"m{dice.randrange(16)}": _value(dice) for _ in range(dice.randrange(1, 16))}
        step = dice.choice([step + 1, step + 1, step + 1, step, max(step - 3, 0)])
        records.append(Metrics(1_700_000_000_000 + len(records), step, values))
        count += len(values)
        if len(records) % 25 == 0:  # ends a request: many small ones see more faults
            records.append(Tags(1_700_000_000_000 + len(records), {"at": str(step)}))
    bad = Metrics(REFUSED_TS, 7, {"bad": 1.0})
    records.insert(dice.randrange(len(records)), bad)
    records.append(Metrics(1_700_000_900_000, 1, {"odd name @ 50 %": 0.5}))
    return [*records, finished()], Counter({stored_row("bad", 7, REFUSED_TS, 1.0): 1})


def _value(dice: random.Random) -> float:
    kind = dice.random()
    if kind < 0.10:
        return math.nan
    if kind < 0.12:
        return dice.choice([math.inf, -math.inf])
    return dice.choice([dice.uniform(-1, 1), dice.random() * LARGEST, 5e-324, -0.0, 0.1 + 0.2])


def deliver_with_kills(run_dir: Path, uploaders: Callable, dice: random.Random, environment: dict[str, str]) -> None:
    """Deliver; again and again the uploader, a lane or both are killed in the middle of their work."""
    for number in range(KILLS):
        before = state(run_dir).records
        uploader = uploaders(run_dir, **environment)
        # At work again: the first time once it has connected, later once there was progress.
        wait_until(partial(_works, uploader, run_dir, before if number else -1))
        time.sleep(dice.random() * 0.5)
        if uploader.poll() is None:
            everything = processes_of(run_dir)
            lanes = [pid for pid in everything if pid != uploader.pid]
            kill(*dice.choice([lanes, [uploader.pid], everything]))
            if uploader.pid not in processes_of(run_dir):
                uploader.wait()
            else:
                kill(uploader.pid)
                uploader.wait()
    assert uploaders(run_dir, **environment).wait(2 * WAIT_S) == 0


def _works(uploader: subprocess.Popen[bytes], run_dir: Path, records: int) -> bool:
    """True once a lane has delivered more than so many records, or the uploader has ended."""
    at_work = state(run_dir).pid in processes_of(run_dir) and state(run_dir).records > records
    return at_work or uploader.poll() is not None


def assert_complete_but_one(uri: str, run_dir: Path, refused: Counter[Row]) -> None:
    assert_exact(uri, run_dir, missing=refused)
    run = only_run(uri, run_dir)
    assert run.info.status == "FINISHED"
    assert run.data.tags["unified_tracker.set_aside"] == "1"
    assert run.data.tags["unified_tracker.delivery"] == "partial"
    assert run.data.tags["unified_tracker.nonfinite.m0"] in {"-inf, inf, nan", "-inf, nan", "inf, nan", "nan"}
    assert (state(run_dir).set_aside, state(run_dir).lost) == (1, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_stands_there_once_after_random_faults_and_kills(
    seed: int, proxy: FaultProxy, server: str, tmp_path: Path, uploaders: Callable
) -> None:
    records, refused = rows(seed)
    run_dir = recorded(tmp_path, proxy.url, records)
    proxy.chaos(seed, 0.3)
    deliver_with_kills(run_dir, uploaders, random.Random(seed), {})
    assert sum(proxy.counts.values()) >= 10
    assert_complete_but_one(server, run_dir, refused)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_stands_there_once_after_kills_without_a_server(
    seed: int, tmp_path: Path, uploaders: Callable
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.MlflowClient(uri).search_experiments()  # makes the tables, which takes seconds
    records, refused = rows(seed + 1000)
    run_dir = recorded(tmp_path, uri, records)
    deliver_with_kills(run_dir, uploaders, random.Random(seed), {})
    assert_complete_but_one(uri, run_dir, refused)
