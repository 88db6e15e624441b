"""Whatever is logged, wherever from: no call raises, nothing good is lost, what is refused is counted."""

from __future__ import annotations

import errno
import inspect
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unified_tracker as ut
from unified_tracker import _journal, _run, _staging, _values, _watch
from unified_tracker._journal import JournalReader
from unified_tracker.records import Artifact, Finished, Loss, Metrics, Params, Record, Tags


def read(run: ut.Run) -> list[Record]:
    """All records; fails if one cannot be decoded."""
    assert run.dir is not None
    reader, found = JournalReader(run.dir / "journal"), []
    while entries := reader.read(final=True):
        found += [entry.record for entry in entries]
    assert (reader.undecodable, reader.unreadable, reader.skipped_bytes) == (0, [], 0)
    return found


class Hostile:
    """Raises whatever one does with it."""

    def _fail(self, *_: Any) -> Any:
        raise ZeroDivisionError

    __str__ = __repr__ = __float__ = __int__ = __len__ = __iter__ = __getitem__ = __array__ = __fspath__ = _fail


class HostileMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        yield "a"
        raise RuntimeError("changed during iteration")

    def __len__(self) -> int:
        return 2


names = st.text(max_size=30) | st.sampled_from(
    ["", "\x00", "\ud800", "..", "/", "CON", "a" * 10_000, "é", "e\u0301", "🙂"]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | names
    | st.binary(max_size=5)
    | st.builds(Hostile)
    | st.just(HostileMapping())
    | st.sampled_from([np.float32(1), np.zeros(3), np.array(2), Fraction(1, 3), 1j, range(9), len, Hostile, object()])
)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
CALLS: dict[str, Callable[[ut.Run, list[Any]], None]] = {
    "log_metrics": lambda run, a: run.log_metrics(a[0], step=a[1]),
    "log_metrics of a mapping": lambda run, a: run.log_metrics({"m": a[0], "n": a[1], "\ud800": a[2]}, a[3]),
    "log_params": lambda run, a: run.log_params(a[0]),
    "log_params of a mapping": lambda run, a: run.log_params({"p": a[0], "q": a[1]}),
    "set_tags": lambda run, a: run.set_tags({"t": a[0], "u": a[1]}),
    "log_text": lambda run, a: run.log_text(a[0], a[1], step=a[2]),
    "log_table": lambda run, a: run.log_table(a[0], ["x", a[1]], [[a[2], a[3]]], step=a[4]),
    "log_image": lambda run, a: run.log_image(a[0], np.zeros((2, 2)) if a[2] is None else a[1], a[3], a[4]),
    "log_figure": lambda run, a: run.log_figure(a[0], a[1]),
    "log_artifact": lambda run, a: run.log_artifact(__file__ if a[0] is None else a[1], a[2], a[3], a[4], a[5]),
    "log_checkpoint": lambda run, a: run.log_checkpoint(__file__, a[0], a[1], a[2], a[3], a[4]),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ut.Run]:
    """A run that records and has no uploader."""
    with (
        mock.patch("unified_tracker._start.UploaderProcess.start"),
        mock.patch("unified_tracker._plugins.require"),
        ut.start_run("mlflow", dir=tmp_path_factory.mktemp("hostile")) as started,
    ):
        yield started
        with mock.patch("unified_tracker._watch.DeliveryWatch.wait"):
            started.finish()


@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.lists(anything, min_size=6, max_size=6))
def test_no_argument_makes_a_call_raise_or_spoils_the_journal(run: ut.Run, call: str, arguments: list[Any]) -> None:
    CALLS[call](run, arguments)
    run.log_metrics({"after": 1.0}, step=7)
    assert run.dir is not None
    last = JournalReader(run.dir / "journal", run.__dict__.get("_seen", _journal.Position()))
    found = []
    while entries := last.read(final=True):
        found += entries
    run.__dict__["_seen"] = last.position
    assert found[-1].record.values == {"after": 1.0}
    assert (last.undecodable, last.unreadable, last.skipped_bytes) == (0, [], 0)


def test_good_neighbours_of_bad_values_are_recorded(run: ut.Run) -> None:
    cyclic: dict[str, Any] = {"lr": 0.1}
    cyclic["me"] = [cyclic, cyclic]
    run.log_params({"endless": range(10**12)})
    run.log_params({"bad": Hostile(), "cyclic": cyclic, "good": 1, 1: "one", "1": "text"})
    run.log_metrics({"bad": Hostile(), "\ud800": 2.0, "good": 1.0}, step=1)
    run.log_metrics({"\ud800": 2.0, "good": 1.0}, step=2)
    params, first, second = read(run)[-3:]
    assert isinstance(params, Params)
    assert params.values == {
        "bad": "<Hostile>",
        "cyclic": {"lr": 0.1, "me": ["...", "..."]},
        "good": 1,
        "1": "one",
        "1 (str)": "text",
    }
    assert isinstance(first, Metrics) and isinstance(second, Metrics)
    assert first.values == second.values == {"?": 2.0, "good": 1.0}


def test_ten_thousand_metrics_and_a_megabyte_go_into_one_call(run: ut.Run) -> None:
    many = {f"m{i}": float(i) for i in range(10_000)}
    run.log_metrics(many, step=1)
    run.log_params({"text": "x" * 1_000_000})
    metrics, params = read(run)[-2:]
    assert isinstance(metrics, Metrics) and isinstance(params, Params)
    assert metrics.values == many
    assert len(params.values["text"]) == 1_000_000


def test_of_parameters_beyond_the_limit_of_a_record_only_those_too_large_themselves_are_refused(run: ut.Run) -> None:
    refused = run.refused
    run.log_params({"a": "x" * 9_000_000, "b": "y" * 9_000_000, "c": "z" * 17_000_000, "d": 1})
    assert run.refused == refused + 1
    kept = [next(iter(record.values)) for record in read(run)[-3:] if isinstance(record, Params)]
    assert kept == ["a", "b", "d"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2])
def test_floats_stand_in_the_journal_bit_by_bit(run: ut.Run, value: float) -> None:
    run.log_metrics({"x": value}, step=1)
    record = read(run)[-1]
    assert isinstance(record, Metrics)
    assert np.float64(record.values["x"]).tobytes() == np.float64(value).tobytes()


def functions() -> list[tuple[Any, str]]:
    """Everything of ours that a call may pass through."""
    found: list[tuple[Any, str]] = []
    for owner in (_staging.Staging, _watch.DeliveryWatch, _journal.Journal):
        found += [(owner, name) for name, _ in inspect.getmembers(owner, inspect.isfunction) if name != "__init__"]
    for module in (_values, _staging):
        members = inspect.getmembers(module, inspect.isfunction)
        found += [(_run, name) for name, _ in members if hasattr(_run, name)]
    return [*found, (_run, "mask"), (_run, "mask_text"), (_run, "now_ms"), (_run, "say")]


@pytest.mark.parametrize("fault", functions(), ids=lambda pair: f"{pair[0].__name__}.{pair[1]}")
def test_a_defect_of_ours_ends_no_training(recording: Path, fault: tuple[Any, str]) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("none left")

    run = ut.start_run("mlflow")
    with mock.patch.object(*fault, fail):
        run._next_pulse_ns = 0
        run.log_metrics({"a": 1.0}, step=1)
        run.log_metrics({"a": 1, "b": "text"}, step=1)
        run.log_params({"a": 1})
        run.set_tags({"a": 1})
        run.log_text("t", "x")
        run.log_table("t", ["a"], [[1]])
        run.log_image("i", np.zeros((2, 2), np.uint8))
        run.log_artifact(__file__)
        run.log_checkpoint(__file__)
        run.finish(timeout_s=0)
    run.finish(timeout_s=0)


def test_a_full_disk_is_told_on_the_run(recording: Path) -> None:
    """Nothing can be written but into the room that was kept: the last records say what is missing."""
    real = os.write
    run = ut.start_run("mlflow")
    assert run.dir is not None
    reserve = run.dir / "journal" / _journal.RESERVE

    def full(fd: int, content: bytes) -> int:
        if reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, content)

    run.log_metrics({"x": 0.0}, step=0)
    with mock.patch("unified_tracker._journal.os.write", full):
        for step in range(1, 8):
            run._next_pulse_ns = 0
            run.log_metrics({"x": float(step)}, step=step)
        assert run.refused == 7
        run.finish("FAILED", "the loop went on to its end", timeout_s=0)
    loss, finished = read(run)[-2:]
    assert isinstance(loss, Loss) and isinstance(finished, Finished)
    assert (loss.count, "No space left" in loss.error, finished.status) == (7, True, "FAILED")


def test_what_was_refused_is_counted_on_the_run(recording: Path) -> None:
    run = ut.start_run("mlflow")
    run.log_metrics({"good": 1.0, "bad": "text"}, step=1)
    run.log_artifact(recording / "nothing")
    run.finish(timeout_s=0)
    tags = {key: value for record in read(run) if isinstance(record, Tags) for key, value in record.values.items()}
    assert tags["unified_tracker.refused"] == "2"


def test_a_checkpoint_that_the_disk_has_no_room_for_is_told_on_the_run_and_metrics_go_on(recording: Path) -> None:
    path = recording / "model_best.pth"
    path.write_bytes(b"weights" * (1 << 18))
    run = ut.start_run("mlflow")
    with (
        mock.patch("shutil.disk_usage", return_value=SimpleNamespace(total=1 << 40, free=1 << 30)),
        mock.patch("os.link", side_effect=OSError(errno.EXDEV, "another file system")),
    ):
        run.log_checkpoint(path, step=1)
        run.log_metrics({"x": 1.0}, step=1)
    run.finish(timeout_s=0)
    tags = {key: value for record in read(run) if isinstance(record, Tags) for key, value in record.values.items()}
    assert tags["unified_tracker.refused"] == "1"
    assert "model_best.pth: " in tags["unified_tracker.refused_file"]
    assert "would leave less than 2 GiB free" in tags["unified_tracker.refused_file"]
    assert [record.values for record in read(run) if isinstance(record, Metrics)] == [{"x": 1.0}]
    assert not any(isinstance(record, Artifact) for record in read(run))


def test_an_unknown_status_is_recorded_as_failed_with_what_was_given(recording: Path) -> None:
    run = ut.start_run("mlflow")
    run.finish("done", timeout_s=0)  # type: ignore[arg-type]
    last = read(run)[-1]
    assert isinstance(last, Finished)
    assert (last.status, last.reason) == ("FAILED", "finish was called with status 'done'")


def test_raising_for_those_who_want_it_comes_after_the_rest_was_recorded(recording: Path) -> None:
    with ut.start_run("mlflow", on_error="raise") as run:
        with pytest.raises(ut.RecordError, match="metric 'bad' is no number: None"):
            run.log_metrics({"bad": None, "good": 1.0}, step=2)
        with pytest.raises(ut.RecordError, match="metric 'AP' is no number"):
            run.log_checkpoint(__file__, step=2, metrics={"AP": "high"})
        assert run.refused == 2
    metrics = [record for record in read(run) if isinstance(record, Metrics)]
    assert [(record.step, record.values) for record in metrics] == [(2, {"good": 1.0})]
    assert any(isinstance(record, Artifact) for record in read(run))


# ---- threads, forks, other processes -------------------------------------------------------------------------------


def test_threads_may_log_at_once(recording: Path) -> None:
    run = ut.start_run("mlflow")

    def log(thread: int) -> None:
        for step in range(500):
            run.log_metrics({f"t{thread}": float(step)}, step=step)

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.finish(timeout_s=0)
    rows = [record for record in read(run) if isinstance(record, Metrics)]
    for number in range(4):
        assert [row.step for row in rows if f"t{number}" in row.values] == list(range(500))


FORKING = """
import os, sys, threading
import unified_tracker as ut
from unified_tracker import _plugins, _start
_start.UploaderProcess.start = lambda self: None
_plugins.require = lambda backend: None
run = ut.start_run("mlflow")
stop = threading.Event()
def log():
    step = 0
    while not stop.is_set():
        run.log_metrics({"parent": float(step)}, step=step)
        step += 1
    print(step)
thread = threading.Thread(target=log)
thread.start()
for _ in range(200):
    child = os.fork()
    if child == 0:
        run.log_metrics({"child": 1.0}, step=1)
        run.log_text("child", "text")
        run.finish()
        os._exit(0 if not run.active else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
thread.join()
run.finish(timeout_s=0)
print(run.dir)
"""


def test_children_forked_while_another_thread_logs_neither_hang_nor_write(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    logged, folder = done.stdout.split()
    reader, rows = JournalReader(Path(folder) / "journal"), []
    while entries := reader.read(final=True):
        rows += [entry.record.values for entry in entries if isinstance(entry.record, Metrics)]
    assert rows == [{"parent": float(step)} for step in range(int(logged))]


def _log_in_a_worker(run: ut.Run) -> tuple[bool, str]:
    run.log_metrics({"worker": 1.0}, step=1)
    run.finish()
    return run.active, run.id


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_run_that_is_sent_to_a_worker_records_nothing_there(recording: Path, method: str) -> None:
    run = ut.start_run("mlflow")
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        assert pool.apply_async(_log_in_a_worker, (run,)).get(timeout=60) == (False, run.id)
    assert pickle.loads(pickle.dumps(run)).id == run.id
    run.finish(timeout_s=0)
    assert not [record for record in read(run) if isinstance(record, Metrics)]
