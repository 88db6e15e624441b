"""The lane: order, back-off, setting aside, restart, and the end of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from unified_tracker import Address, RejectedError, RunInfo, Tracker, TransientError
from unified_tracker._backoff import CAP_S, Backoff
from unified_tracker._courier import CALL_S, UNSORTED_TRIES
from unified_tracker._journal import Journal, now_ms, segments
from unified_tracker._lane import DONE, PENDING, Lane
from unified_tracker._ledger import Ledger
from unified_tracker._rundir import RunDirectory, find_runs
from unified_tracker.records import Artifact, Entry, Finished, Loss, Metrics, Params, StagedFile, Started, Tags
from unified_tracker.testing import run_info


class ManualClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class MemoryTracker:
    """A backend in memory that fails on demand: `trouble` is asked before every call."""

    rebuilds = False

    def __init__(self, trouble: Callable[[str, Sequence[Entry]], None] = lambda call, entries: None) -> None:
        self.trouble = trouble
        self.calls: list[str] = []
        self.rows: list[tuple[int, str, float]] = []
        self.params: dict[str, Any] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: dict[str, bytes] = {}
        self.ended: tuple[str, int] | None = None
        self.address = Address("id", "memory://")
        self._held = 0

    def _call(self, name: str, entries: Sequence[Entry] = ()) -> None:
        self.calls.append(name)
        self.trouble(name, entries)
        if entries:
            self._held = entries[-1].sequence

    def open(self, run: RunInfo) -> Address:
        self._call("open")
        return self.address

    def log_metrics(self, entries: Sequence[Entry]) -> None:
        self._call("log_metrics", entries)
        for entry in entries:
            assert isinstance(entry.record, Metrics)
            self.rows += [(entry.record.step or 0, name, float(v)) for name, v in entry.record.values.items()]

    def log_params(self, entries: Sequence[Entry]) -> None:
        self._call("log_params", entries)
        for entry in entries:
            assert isinstance(entry.record, Params)
            self.params.update(entry.record.values)

    def set_tags(self, entries: Sequence[Entry]) -> None:
        self._call("set_tags", entries)
        for entry in entries:
            assert isinstance(entry.record, Tags)
            self.tags.update(entry.record.values)

    def log_media(self, entry: Entry, file: Path) -> None:
        self._call("log_media", [entry])

    def log_artifact(self, entry: Entry, files: Mapping[str, Path]) -> None:
        self._call("log_artifact", [entry])
        self.artifacts.update({name: path.read_bytes() for name, path in files.items()})

    def held(self) -> int:
        return self._held

    def close(self, status: str, ended_ms: int) -> None:
        self._call("close")
        self.ended = (status, ended_ms)


def directory(tmp_path: Path, *records: Any) -> RunDirectory:
    """A run directory whose training is over."""
    found = RunDirectory(tmp_path / "unified-tracker" / "abcd1234")
    found.create(run_info("memory"))
    journal = Journal(found.journal)
    for record in (Started(now_ms(), journal.attempt, 1, None, None, {}), *records):
        assert journal.append(record)
    journal.close()
    return found


def deliver(place: RunDirectory, tracker: Tracker, clock: ManualClock | None = None, linger_s: float = 600.0) -> int:
    return Lane(place, "memory", tracker, linger_s=linger_s, clock=clock or ManualClock()).run()


def metrics(count: int) -> list[Metrics]:
    return [Metrics(1000 + i, i, {"loss": float(i), "lr": 0.5}) for i in range(count)]


END = Finished(5000, "FINISHED")


def test_everything_arrives_in_order_and_the_run_is_closed(tmp_path: Path) -> None:
    tracker = MemoryTracker()
    place = directory(tmp_path, Params(1, {"a": 1}), *metrics(500), Tags(2, {"k": "v"}), END)
    assert deliver(place, tracker) == DONE
    assert tracker.rows == [(i, name, value) for i in range(500) for name, value in (("loss", float(i)), ("lr", 0.5))]
    assert tracker.ended == ("FINISHED", 5000)
    assert tracker.tags == {"k": "v", "unified_tracker.delivery": "complete", "unified_tracker.status": "FINISHED"}
    state = place.lane_state("memory")
    assert state is not None
    assert state.done
    assert state.held == state.read == (1 << 40) + 504


def test_a_second_delivery_does_nothing(tmp_path: Path) -> None:
    place = directory(tmp_path, *metrics(3), END)
    deliver(place, MemoryTracker())
    again = MemoryTracker()
    assert deliver(place, again) == DONE
    assert again.calls == []


def test_a_training_that_ends_without_a_word_is_killed(tmp_path: Path) -> None:
    tracker = MemoryTracker()
    deliver(directory(tmp_path, *metrics(3)), tracker)
    assert tracker.ended is not None
    assert tracker.ended[0] == "KILLED"


def test_transient_errors_are_tried_again_with_growing_waits(tmp_path: Path) -> None:
    failures = iter([TransientError("503")] * 5 + [TransientError("429", 7.0)])

    def trouble(call: str, entries: Sequence[Entry]) -> None:
        if call == "log_metrics" and (error := next(failures, None)) is not None:
            raise error

    clock, tracker = ManualClock(), MemoryTracker(trouble)
    assert deliver(directory(tmp_path, *metrics(3), END), tracker, clock) == DONE
    assert len(tracker.rows) == 6
    for slept, ceiling in zip(clock.slept, (0.5, 1.0, 2.0, 4.0, 8.0), strict=False):
        assert ceiling / 2 <= slept <= ceiling
    assert clock.slept[5] == 7.0


def test_a_backend_that_never_answers_keeps_everything_for_the_next_time(tmp_path: Path) -> None:
    def down(call: str, entries: Sequence[Entry]) -> None:
        raise TransientError("connection refused by https://me:hunter2hunter2@host")

    place, clock = directory(tmp_path, *metrics(3), END), ManualClock()
    assert deliver(place, MemoryTracker(down), clock, linger_s=600) == PENDING
    assert 600 <= clock.now < 600 + 2 * CAP_S
    state = place.lane_state("memory")
    assert state is not None
    assert state.error is not None
    assert "connection refused" in state.error
    assert "hunter2" not in state.error
    tracker = MemoryTracker()
    assert deliver(place, tracker) == DONE
    assert len(tracker.rows) == 6


@pytest.mark.parametrize("bad", [0, 7, 99])
def test_one_poisonous_value_is_set_aside_and_its_neighbours_arrive(tmp_path: Path, bad: int) -> None:
    def poison(call: str, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if isinstance(entry.record, Metrics) and entry.record.step == bad and "loss" in entry.record.values:
                raise RejectedError("INVALID_PARAMETER_VALUE")

    tracker = MemoryTracker(poison)
    place = directory(tmp_path, *metrics(100), END)
    assert deliver(place, tracker) == DONE
    everything = {(i, name) for i in range(100) for name in ("loss", "lr")}
    assert {(step, name) for step, name, _ in tracker.rows} == everything - {(bad, "loss")}
    assert len(tracker.rows) == 199
    assert tracker.tags["unified_tracker.delivery"] == "partial"
    assert tracker.tags["unified_tracker.set_aside"] == "1"
    ledger = Ledger(place.lanes / "memory.db")
    assert ledger.all_set_aside() == [((1 << 40) + bad + 2, "metrics loss", "INVALID_PARAMETER_VALUE")]
    ledger.close()
    assert tracker.calls.count("log_metrics") < 30


def test_an_unsorted_error_blocks_nobody_for_ever(tmp_path: Path) -> None:
    def bug(call: str, entries: Sequence[Entry]) -> None:
        if any(isinstance(entry.record, Metrics) and entry.record.step == 1 for entry in entries):
            raise KeyError("a bug in the backend")

    tracker, clock = MemoryTracker(bug), ManualClock()
    assert deliver(directory(tmp_path, *metrics(3), END), tracker, clock) == DONE
    assert {step for step, _, _ in tracker.rows} == {0, 2}
    assert len(clock.slept) >= UNSORTED_TRIES - 1


def test_after_a_crash_only_what_is_not_held_comes_again(tmp_path: Path) -> None:
    class Dead(BaseException):
        pass

    place = directory(tmp_path, *metrics(10), Params(1, {"a": 1}), *metrics(10), END)

    def crash(call: str, entries: Sequence[Entry]) -> None:
        if call == "log_params":
            raise Dead

    first = MemoryTracker(crash)
    with pytest.raises(Dead):
        deliver(place, first)
    # Nothing of a chunk is acknowledged before the chunk is through: it comes again, and the tracker recognises it.
    second = MemoryTracker()
    assert deliver(place, second) == DONE
    assert second.params == {"a": 1}
    assert len(second.rows) == 40


def test_a_tracker_that_rebuilds_is_given_the_whole_journal_again(tmp_path: Path) -> None:
    place = directory(tmp_path, *metrics(5), END)
    deliver(place, MemoryTracker())
    journal = Journal(place.journal)
    journal.append(Started(now_ms(), journal.attempt, 1, None, None, {}))
    journal.append(Metrics(9000, 5, {"loss": 5.0}))
    journal.close()
    goes_on, rebuilds = MemoryTracker(), MemoryTracker()
    rebuilds.rebuilds = True
    place2 = directory(tmp_path / "copy", *metrics(5), END)
    deliver(place2, MemoryTracker())
    deliver(place, goes_on)
    assert goes_on.rows == [(5, "loss", 5.0)]
    assert goes_on.ended is not None
    assert goes_on.ended[0] == "KILLED"
    journal = Journal(place2.journal)
    journal.append(Metrics(9000, 5, {"loss": 5.0}))
    journal.close()
    deliver(place2, rebuilds)
    assert len(rebuilds.rows) == 11


def test_another_server_is_given_everything(tmp_path: Path) -> None:
    place = directory(tmp_path, *metrics(5))
    deliver(place, MemoryTracker())
    journal = Journal(place.journal)
    for record in (Metrics(9000, 5, {"loss": 5.0}), END):
        journal.append(record)
    journal.close()
    elsewhere = MemoryTracker()
    elsewhere.address = Address("other", "memory://elsewhere")
    assert deliver(place, elsewhere) == DONE
    assert len(elsewhere.rows) == 11
    state = place.lane_state("memory")
    assert state is not None
    assert state.records == 8
    assert "everything is delivered again" in state.notes[0]


def test_a_sync_does_not_sit_out_a_long_pause_that_a_backend_asks_for(tmp_path: Path) -> None:
    def busy(call: str, entries: Sequence[Entry]) -> None:
        raise TransientError("HTTP 429", 300.0)

    clock = ManualClock()
    assert deliver(directory(tmp_path, END), MemoryTracker(busy), clock, linger_s=60) == PENDING
    assert clock.now == 0


def test_losses_are_told_on_the_run(tmp_path: Path) -> None:
    tracker = MemoryTracker()
    deliver(directory(tmp_path, Loss(1, 17, "No space left on device"), END), tracker)
    assert tracker.tags["unified_tracker.lost"] == "17"
    assert tracker.tags["unified_tracker.delivery"] == "partial"


def lose(journal: Journal, count: int) -> None:
    """What a full disk does: the numbers of the records stay unused."""
    journal._sequence += count


def test_a_loss_that_was_reported_is_not_counted_twice(tmp_path: Path) -> None:
    place = directory(tmp_path, *metrics(3))
    for reported in (4, 0, 2):  # three attempts: lost and reported; only lost; reported, and damage besides
        journal = Journal(place.journal)
        journal.append(metrics(1)[0])
        lose(journal, 4)
        if reported:
            journal.append(Loss(1, reported, "No space left on device"))
        journal.append(END)
        journal.close()
    tracker = MemoryTracker()
    deliver(place, tracker)
    assert tracker.tags["unified_tracker.lost"] == "12"
    state = place.lane_state("memory")
    assert state is not None
    assert state.lost == 12


def test_losses_are_remembered_over_a_restart_of_the_lane(tmp_path: Path) -> None:
    class Dead(BaseException):
        pass

    def crash(call: str, entries: Sequence[Entry]) -> None:
        if call == "close":
            raise Dead

    place = directory(tmp_path, *metrics(3))
    journal = Journal(place.journal)
    lose(journal, 5)
    for record in (*metrics(3), END):
        journal.append(record)
    journal.close()
    with pytest.raises(Dead):
        deliver(place, MemoryTracker(crash))
    tracker = MemoryTracker()
    assert deliver(place, tracker) == DONE
    assert tracker.rows == []
    assert tracker.tags["unified_tracker.lost"] == "5"
    # The end of the run was held before the crash: it is not taken for a training that was killed.
    assert tracker.ended == ("FINISHED", 5000)


def test_a_segment_that_cannot_be_read_is_told_and_left_where_it_is(tmp_path: Path) -> None:
    place = directory(tmp_path, *metrics(3))
    journal = Journal(place.journal)
    journal.append(END)
    journal.close()
    name = segments(place.journal)[0].name
    (place.journal / name).write_bytes(b"written by a version that does not exist yet" * 9)
    tracker = MemoryTracker()
    assert deliver(place, tracker) == DONE
    assert tracker.tags["unified_tracker.delivery"] == "partial"
    state = place.lane_state("memory")
    assert state is not None
    assert f"segment {name} of the journal cannot be read" in state.notes[0]
    assert (place.journal / name).exists()


def test_metrics_travel_in_full_requests_and_no_larger_ones(tmp_path: Path) -> None:
    sizes: list[int] = []

    def note(call: str, entries: Sequence[Entry]) -> None:
        if call == "log_metrics":
            sizes.append(sum(len(entry.record.values) for entry in entries))  # type: ignore[union-attr]

    wide = Metrics(1, 1, {f"m{number}": 1.0 for number in range(2500)})
    deliver(directory(tmp_path, *metrics(2600), wide, *metrics(3), END), MemoryTracker(note))
    assert sizes == [1000, 1000, 1000, 1000, 1000, 200, 2500, 6]


def test_set_aside_is_still_known_after_a_resume(tmp_path: Path) -> None:
    def poison(call: str, entries: Sequence[Entry]) -> None:
        if any(isinstance(entry.record, Metrics) and entry.record.step == 1 for entry in entries):
            raise RejectedError("INVALID_PARAMETER_VALUE")

    place = directory(tmp_path, *metrics(3), Finished(4000, "FAILED", "OutOfMemory"))
    first = MemoryTracker(poison)
    deliver(place, first)
    assert first.tags["unified_tracker.reason"] == "OutOfMemory"
    journal = Journal(place.journal)
    for record in (Started(now_ms(), journal.attempt, 1, None, None, {}), END):
        journal.append(record)
    journal.close()
    seen: list[dict[str, str]] = []
    tracker = MemoryTracker(lambda call, entries: seen.append(dict(tracker.tags)) if call == "set_tags" else None)
    deliver(place, tracker)
    assert seen[1]["unified_tracker.delivery"] == "recording"
    assert tracker.tags["unified_tracker.delivery"] == "partial"
    assert tracker.tags["unified_tracker.reason"] == ""
    state = place.lane_state("memory")
    assert state is not None
    assert state.set_aside == 2
    assert len(state.notes) == 2


class WithCanary(MemoryTracker):
    """A backend that says of itself whether it takes anything."""

    takes = True

    def canary(self, entries: Sequence[Entry]) -> None:
        if not self.takes:
            raise TransientError("down altogether")


def failing_at(step: int) -> Callable[[str, Sequence[Entry]], None]:
    def trouble(call: str, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if isinstance(entry.record, Metrics) and entry.record.step == step and "loss" in entry.record.values:
                raise TransientError("HTTP 500", suspect=True)

    return trouble


@pytest.mark.parametrize("bad", [0, 50, 99])
def test_a_value_at_which_the_backend_fails_for_ever_is_set_aside(tmp_path: Path, bad: int) -> None:
    tracker, clock = WithCanary(failing_at(bad)), ManualClock()
    assert deliver(directory(tmp_path, *metrics(100), END), tracker, clock) == DONE
    everything = {(i, name) for i in range(100) for name in ("loss", "lr")}
    assert {(step, name) for step, name, _ in tracker.rows} == everything - {(bad, "loss")}
    assert len(tracker.rows) == 199
    assert tracker.tags["unified_tracker.set_aside"] == "1"
    assert clock.now < 120


def test_trouble_that_is_over_when_the_backend_is_asked_blames_nothing(tmp_path: Path) -> None:
    """The last failure of an outage, then proof of life: the value is tried once more before it is set aside."""
    out = [True]

    class Recovering(WithCanary):
        def canary(self, entries: Sequence[Entry]) -> None:
            out[0] = False

    def trouble(call: str, entries: Sequence[Entry]) -> None:
        if call == "log_metrics" and out[0]:
            raise TransientError("HTTP 500", suspect=True)

    tracker = Recovering(trouble)
    assert deliver(directory(tmp_path, Metrics(1000, 1, {"loss": 1.0}), END), tracker) == DONE
    assert tracker.rows == [(1, "loss", 1.0)]
    assert tracker.tags["unified_tracker.delivery"] == "complete"


def test_nothing_is_suspected_while_the_backend_takes_nothing_at_all(tmp_path: Path) -> None:
    tracker, clock = WithCanary(failing_at(1)), ManualClock()
    tracker.takes = False
    place = directory(tmp_path, *metrics(3), END)
    assert deliver(place, tracker, clock) == PENDING
    state = place.lane_state("memory")
    assert state is not None
    assert (state.set_aside, state.error, state.call_until) == (0, "HTTP 500", 0)


def test_a_call_is_announced_with_the_moment_by_which_it_must_be_over(tmp_path: Path) -> None:
    place = directory(tmp_path, *metrics(3), END)
    seen: dict[str, float] = {}
    clock = ManualClock()

    def look(call: str, entries: Sequence[Entry]) -> None:
        state = place.lane_state("memory")
        seen[call] = state.call_until - clock.now if state else 0.0

    deliver(place, MemoryTracker(look), clock)
    assert set(seen) == {"open", "log_metrics", "set_tags", "close"}
    assert all(CALL_S <= left <= 20 * CALL_S for left in seen.values())
    state = place.lane_state("memory")
    assert state is not None
    assert state.call_until == 0


def staged(place: RunDirectory, source: Path, folder: str = "files") -> StagedFile:
    (place.path / folder).mkdir(exist_ok=True)
    link = place.path / folder / "1-file"
    link.hardlink_to(source)
    stat = link.stat()
    return StagedFile(source.name, f"{folder}/1-file", stat.st_size, stat.st_mtime_ns)


def test_a_linked_file_is_made_private_before_it_is_delivered(tmp_path: Path) -> None:
    source = tmp_path / "epoch_1.pth"
    source.write_bytes(b"settled")
    place = directory(tmp_path)
    file = staged(place, source)
    journal = Journal(place.journal)
    journal.append(Artifact(1, "m", "model", (file,)))
    journal.append(END)
    journal.close()

    def overwrite(call: str, entries: Sequence[Entry]) -> None:
        if call == "log_artifact":
            source.write_bytes(b"written over while it is uploaded")

    tracker = MemoryTracker(overwrite)
    deliver(place, tracker)
    assert tracker.artifacts == {"epoch_1.pth": b"settled"}


def test_a_file_written_over_before_delivery_is_refused_not_published(tmp_path: Path) -> None:
    source = tmp_path / "epoch_1.pth"
    source.write_bytes(b"settled")
    place = directory(tmp_path)
    file = staged(place, source)
    source.write_bytes(b"written over in place")
    journal = Journal(place.journal)
    journal.append(Artifact(1, "m", "model", (file,)))
    journal.append(END)
    journal.close()
    tracker = MemoryTracker()
    deliver(place, tracker)
    assert tracker.artifacts == {}
    state = place.lane_state("memory")
    assert state is not None
    assert "epoch_1.pth was written over in place after it had been logged" in state.notes[0]


def test_a_shared_file_is_delivered_without_a_copy_and_watched_meanwhile(tmp_path: Path) -> None:
    source = tmp_path / "1.jpg"
    source.write_bytes(b"a picture")
    place = directory(tmp_path)
    file = staged(place, source, "shared")
    journal = Journal(place.journal)
    journal.append(Artifact(1, "d", "dataset", (file,)))
    journal.append(END)
    journal.close()
    links: list[int] = []

    def overwrite(call: str, entries: Sequence[Entry]) -> None:
        if call == "log_artifact":
            links.append(source.stat().st_nlink)
            source.write_bytes(b"written over while it is uploaded")

    deliver(place, MemoryTracker(overwrite))
    assert links == [2], "it was copied"
    state = place.lane_state("memory")
    assert state is not None
    assert "1.jpg was written over in place after it had been logged" in state.notes[0]


def test_backoff_doubles_up_to_its_cap() -> None:
    class Highest:
        def uniform(self, low: float, high: float) -> float:
            return high

    backoff = Backoff(Highest())  # type: ignore[arg-type]
    assert [backoff.next_s() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next_s() == 0.5
    assert backoff.next_s(asked_s=10_000) == 600
    assert math.isfinite(backoff.next_s())


def test_run_directories_are_found_wherever_they_are(tmp_path: Path) -> None:
    places = [directory(tmp_path / name, END) for name in ("a", "b/c")]
    assert sorted(found.path for found in find_runs(tmp_path)) == sorted(place.path for place in places)
    assert [found.path for found in find_runs(places[0].path)] == [places[0].path]
