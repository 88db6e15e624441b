"""Kill -9 of the training, of the uploader, of both, of everything; then `unified-tracker sync`."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import (
    IMPATIENT,
    WAIT_S,
    finished,
    kill,
    processes_of,
    recorded,
    start_sync,
    state,
    sync,
    wait_until,
)
from tests.faults.exactness import assert_exact, journal, only_run
from tests.faults.proxy import FaultProxy
from unified_tracker._journal import segments
from unified_tracker.records import Metrics

ROUNDS = range(int(os.environ.get("FAULTS_ROUNDS", "1")))


class Training:
    """A training in a process of its own."""

    def __init__(self, folder: Path, uri: str, *how: str) -> None:
        self.folder, self.uri = folder, uri
        command = [sys.executable, str(Path(__file__).with_name("train.py")), str(folder), uri, folder.name, *how]
        environment = {**os.environ, **IMPATIENT}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.returned() > 0)
        (self.run_dir,) = (folder / "unified-tracker").iterdir()

    def returned(self) -> int:
        """How many calls have returned."""
        try:
            return int(struct.unpack("<q", (self.folder / "returned").read_bytes())[0])
        except (FileNotFoundError, struct.error):
            return 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def check(self, server: str) -> None:
        """Every call that returned stands in the journal, in order, and everything in the journal in the backend."""
        calls = [entry.record for entry in journal(self.run_dir) if isinstance(entry.record, Metrics)]
        assert len(calls) - self.returned() in {0, 1}, "a call that returned is missing, or there is one too many"
        for count, record in enumerate(calls, 1):
            assert (record.step, record.values["count"]) == (count, float(count))
            assert math.isnan(record.values["loss"]) == (count % 10 == 0)
        assert_exact(server, self.run_dir)
        run = only_run(server, self.run_dir)
        assert run.info.status == run.data.tags["unified_tracker.status"] == "KILLED"
        assert run.data.tags["unified_tracker.delivery"] == "complete"


@pytest.fixture
def training(proxy: FaultProxy, tmp_path: Path) -> Iterator[Callable[..., Training]]:
    started: list[Training] = []

    def start(*how: str) -> Training:
        folder = tmp_path / f"{tmp_path.parent.name}-{tmp_path.name}"  # the project: the tests share a server
        folder.mkdir()
        started.append(Training(folder, proxy.url, *how))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        kill(*processes_of(each.run_dir))


@pytest.mark.parametrize("round_number", ROUNDS)
@pytest.mark.parametrize("victim", ["training", "uploader, then training", "both at once", "everything"])
def test_what_was_logged_when_a_call_returned_survives_sigkill(
    victim: str, round_number: int, training: Callable[[], Training], server: str
) -> None:
    killed = training()
    wait_until(lambda: len(processes_of(killed.run_dir)) >= 2)
    uploader = min(processes_of(killed.run_dir))
    time.sleep(random.Random(round_number).random() + 0.5 * (len(victim) % 5))
    if victim == "training":
        killed.kill()
    elif victim == "uploader, then training":
        kill(uploader)
        time.sleep(0.5)
        killed.kill()
    elif victim == "both at once":
        kill(killed.process.pid, uploader)
        killed.kill()
    else:
        kill(killed.process.pid, *processes_of(killed.run_dir))
        killed.kill()
    done = sync(killed.folder)
    if victim == "training":  # the uploader is alive and at work: sync leaves it to it
        assert done.returncode in {0, 5}, done.stdout + done.stderr
        wait_until(lambda: state(killed.run_dir).done)
    else:
        assert done.returncode in {0, 5}, done.stdout + done.stderr
        if done.returncode == 5:  # the training had started a new uploader before it died
            wait_until(lambda: state(killed.run_dir).done)
    killed.check(server)


def test_killed_before_the_run_was_created(proxy: FaultProxy, training: Callable[[], Training], server: str) -> None:
    proxy.refuse()
    killed = training()
    wait_until(lambda: state(killed.run_dir).error)
    kill(killed.process.pid, *processes_of(killed.run_dir))
    killed.kill()
    proxy.accept()
    assert sync(killed.folder).returncode == 0
    killed.check(server)


def test_a_torn_tail_is_no_loss(proxy: FaultProxy, server: str, tmp_path: Path) -> None:
    """The bytes of a call that never returned: nothing is missing, and the run says so."""
    run_dir = recorded(tmp_path, proxy.url, [Metrics(1000 + i, i, {"x": 1.0}) for i in range(20)])
    last = segments(run_dir / "journal")[-1]
    os.truncate(last, last.stat().st_size - 3)
    assert len(journal(run_dir)) == 20
    assert sync(tmp_path).returncode == 0
    assert_exact(server, run_dir)
    assert only_run(server, run_dir).data.tags["unified_tracker.delivery"] == "complete"


def test_a_damaged_record_is_told_on_the_run_and_its_neighbours_arrive(
    proxy: FaultProxy, server: str, tmp_path: Path
) -> None:
    run_dir = recorded(tmp_path, proxy.url, [*(Metrics(1000 + i, i, {"x": 1.0}) for i in range(20)), finished()])
    (segment,) = segments(run_dir / "journal")
    damaged = bytearray(segment.read_bytes())
    damaged[journal(run_dir)[9].end.offset + 30] ^= 1
    segment.write_bytes(damaged)
    assert sync(tmp_path).returncode in {0, 3}
    assert len(journal(run_dir)) == 21
    assert_exact(server, run_dir)
    tags = only_run(server, run_dir).data.tags
    assert (tags["unified_tracker.delivery"], tags["unified_tracker.lost"]) == ("partial", "1")
    assert state(run_dir).lost == 1


def test_a_second_sync_asks_the_server_nothing(proxy: FaultProxy, server: str, tmp_path: Path) -> None:
    run_dir = recorded(tmp_path, proxy.url, [*(Metrics(1000 + i, i, {"x": 1.0}) for i in range(20)), finished()])
    assert sync(tmp_path).returncode == 0
    asked = len(proxy.requests)
    assert sync(tmp_path).returncode == 0
    assert len(proxy.requests) == asked
    assert_exact(server, run_dir)


def test_two_syncs_at_once_deliver_once(proxy: FaultProxy, server: str, tmp_path: Path) -> None:
    rows = [Metrics(1000 + i, i, {f"m{k}": i / (k + 1) for k in range(10)}) for i in range(400)]
    run_dir = recorded(tmp_path, proxy.url, [*rows, finished()])
    proxy.fault("delay", seconds=0.2)
    codes = [wait().returncode for wait in [start_sync(tmp_path), start_sync(tmp_path)]]
    assert 0 in codes
    assert set(codes) <= {0, 5}
    assert sum(request.path.endswith("runs/create") for request in proxy.requests) == 1
    assert_exact(server, run_dir)


def test_an_uploader_that_is_killed_takes_its_lanes_with_it(
    proxy: FaultProxy, tmp_path: Path, uploaders: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Two lanes of one run, the old one and the next uploader's, would deliver it twice."""
    run_dir = recorded(tmp_path, proxy.url, [*(Metrics(1000 + i, i, {"x": 1.0}) for i in range(20)), finished()])
    proxy.fault("black_hole")
    uploader = uploaders(run_dir, MLFLOW_HTTP_REQUEST_TIMEOUT="600")
    wait_until(lambda: proxy.requests)
    assert len(processes_of(run_dir)) == 2
    os.kill(uploader.pid, signal.SIGKILL)
    uploader.wait(WAIT_S)
    wait_until(lambda: not processes_of(run_dir))


def test_sync_says_what_is_pending_while_the_server_is_away(proxy: FaultProxy, server: str, tmp_path: Path) -> None:
    run_dir = recorded(tmp_path, proxy.url, [*(Metrics(1000 + i, i, {"x": 1.0}) for i in range(20)), finished()])
    proxy.refuse()
    done = sync(tmp_path, "--json", UNIFIED_TRACKER_LINGER_S="1")
    assert done.returncode == 2
    (lane,) = json.loads(done.stdout)[0]["backends"]
    assert lane["state"] == "pending"
    assert "refused" in lane["error"]
    proxy.accept()
    assert sync(tmp_path).returncode == 0
    assert_exact(server, run_dir)


def test_a_clock_that_is_set_back_moves_and_loses_no_row(proxy: FaultProxy, server: str, tmp_path: Path) -> None:
    """An hour, in the middle of the training: the rows keep their order, their steps and the times they were given."""
    hour = 3_600_000
    times = [10 * hour + i for i in range(50)] + [9 * hour + i for i in range(50)]
    rows = [Metrics(ts, step, {"x": float(step), "same": 1.0}) for step, ts in enumerate(times)]
    run_dir = recorded(tmp_path, proxy.url, [*rows, finished()])
    assert sync(tmp_path).returncode == 0
    assert_exact(server, run_dir)
    assert [entry.record for entry in journal(run_dir)][1:-1] == rows
    assert only_run(server, run_dir).data.metrics["x"] == 99.0


def test_a_training_whose_workers_live_on_is_dead(training: Callable[..., Training], server: str) -> None:
    """Data loading workers inherit every descriptor of a training; none of them may keep the run open."""
    killed = training("workers")
    wait_until(lambda: killed.returned() > 50)
    workers = [int(line) for line in (killed.folder / "workers").read_text().split()]
    killed.kill()
    try:
        wait_until(lambda: state(killed.run_dir).done)
        os.kill(workers[0], 0)  # it is still there
    finally:
        kill(*workers)
    killed.check(server)
