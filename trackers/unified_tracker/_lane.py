"""A lane: one run, one backend. Reads the journal, drives the tracker, keeps the ledger.

Runs as a process of its own (`python -m unified_tracker._lane RUN_DIR BACKEND`), started by the uploader, so that a
backend whose client hangs, leaks or dies takes nothing else with it.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec
from filelock import FileLock

from unified_tracker import _plugins
from unified_tracker._backoff import Backoff
from unified_tracker._errors import DeliveryError, RejectedError, TransientError
from unified_tracker._guard import make_private
from unified_tracker._journal import ATTEMPT_SHIFT, JournalReader
from unified_tracker._ledger import Held, Ledger
from unified_tracker._mask import mask_text
from unified_tracker._retention import Retention
from unified_tracker._rundir import LaneState, RunDirectory, write_json
from unified_tracker._staging import changed, locate
from unified_tracker._tracker import Tracker
from unified_tracker.records import (
    Artifact,
    Entry,
    Finished,
    Loss,
    Media,
    Metrics,
    Params,
    Predictions,
    Record,
    StagedFile,
    Started,
    Status,
    Tags,
)

POLL_S: Final = 0.2
TELL_S: Final = 0.5  # how often a lane that is busy writes down how far it is
IDLE_S: Final = 15.0
LINGER_S: Final = 600.0
READ_BYTES: Final = 2 << 20
VALUES_A_CALL: Final = 1000  # what MLflow takes in one request
UNSORTED_TRIES: Final = 5
SUSPECT_TRIES, FEW_TRIES = 5, 2  # failures after which records are suspected; their halves are so already
DONE, PENDING = 0, 2

# A call that is not over by then hangs: the uploader ends this process and starts it again.
LIMIT_VARIABLE: Final = "UNIFIED_TRACKER_CALL_LIMIT_S"
CALL_S: Final = 120.0
CLOSE_CALLS: Final = 8  # closing may wait for everything that a client has queued
BYTES_A_S: Final = 128 << 10
NOTES: Final = 20

_log = logging.getLogger("unified_tracker.lane")
T = TypeVar("T")


class Clock(Protocol):
    """Time, so that tests can pass their own."""

    def monotonic(self) -> float:
        """Seconds, never going back."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


class GaveUp(Exception):  # noqa: N818 -- a decision, not an error
    """The trainer is gone and the backend does not answer: what is pending waits for the next `sync`."""


class SuspectError(RejectedError):
    """The backend fails at these records again and again, while it takes others."""


class Lane:
    """Delivery of one run to one backend. One request in flight, in the order of the journal."""

    def __init__(
        self,
        directory: RunDirectory,
        backend: str,
        tracker: Tracker,
        *,
        linger_s: float = LINGER_S,
        clock: Clock = time,
        call_limit_s: float = CALL_S,
        backoff: Backoff | None = None,
    ) -> None:
        self._directory, self._backend, self._tracker = directory, backend, tracker
        self._linger_s, self._clock, self._call_limit_s = linger_s, clock, call_limit_s
        self._ledger = Ledger(directory.lanes / f"{backend}.db")
        self._held = self._ledger.held()  # up to here the run was complete once, even if it is rebuilt now
        self._read = self._held
        self._reader = JournalReader(directory.journal, self._held.position)
        self._damage: list[str] = self._ledger.get("damage", list[str]) or []
        self._sent: list[Held] = []
        self._before = directory.lane_state(backend)
        self._state = LaneState(
            backend,
            os.getpid(),
            address=self._before.address if self._before else None,
            held=self._held.sequence,
            read=self._held.sequence,
            records=self._held.records,
            set_aside=len(self._ledger.all_set_aside()),
            notes=self._before.notes if self._before else (),
            lost=self._held.missing,
        )
        self._retention = Retention(directory)
        self._backoff = backoff or Backoff()
        self._told = 0.0
        self._file_bytes = 0

    def run(self) -> int:
        """Deliver until the run has ended and the backend holds everything.

        Returns:
            0 when done, 2 when it gave up for now.
        """
        resumed = self._before is not None and self._before.done
        if resumed and not self._directory.writer_alive() and not self._reader.read(final=True):
            return DONE
        if getattr(self._tracker, "rebuilds", False):  # a stranger's tracker may not know the attribute
            self._held = self._read = Held()
            self._state = msgspec.structs.replace(self._state, records=0, rebuilds=True)
        self._reader = JournalReader(self._directory.journal, self._held.position)
        self._publish()
        try:
            address = self._insist(lambda: self._tracker.open(self._directory.info()))
            if self._state.address is not None and self._state.address.id != address.id:
                self._begin_anew(f"run {self._state.address.id} has become {address.id}: everything is delivered again")
            self._publish(address=address, error=None)
            if resumed:  # what the tags say about delivery is about the attempt before
                self._set_own_tags({"unified_tracker.delivery": "recording", "unified_tracker.reason": ""})
            while True:
                over = not self._directory.writer_alive()  # asked before reading: what came before it is then read
                entries = self._reader.read(READ_BYTES, final=over)
                self._look_for_damage()
                if entries:
                    self._deliver(entries)
                elif over:
                    break
                else:
                    self._clock.sleep(POLL_S)
                    if self._sent and self._clock.monotonic() - self._told >= IDLE_S:
                        self._acknowledge()  # a backend that is asked now and then may hold more by now
            self._close()
        except GaveUp:
            return PENDING
        finally:
            self._ledger.close()
        return DONE

    def _begin_anew(self, why: str) -> None:
        """Deliver the journal from its start: another server, another database."""
        _log.warning("%s", why)
        self._held = self._read = Held()
        self._reader = JournalReader(self._directory.journal)
        self._publish(records=0, read=0, notes=(*self._state.notes, why)[:NOTES])

    # ---- delivering --------------------------------------------------------------------------------------------

    def _deliver(self, entries: Sequence[Entry]) -> None:
        for kind, group in groupby(entries, key=lambda entry: type(entry.record)):
            for batch in _batches(kind, list(group)):
                if kind is Metrics:
                    self._send(self._tracker.log_metrics, batch)
                elif kind is Params:
                    self._send(self._tracker.log_params, batch)
                elif kind is Tags:
                    self._send(self._tracker.set_tags, batch)
                else:
                    for entry in batch:
                        self._deliver_one(entry)
                self._read = _counted(self._read, batch)
                self._sent.append(self._read)
                if self._clock.monotonic() - self._told >= TELL_S:
                    self._acknowledge()
        self._acknowledge()

    def _deliver_one(self, entry: Entry) -> None:
        record = entry.record
        if isinstance(record, Media):
            self._send(lambda batch: self._log_media(batch[0], record.file), [entry], files=(record.file,))
        elif isinstance(record, Artifact):
            self._send(lambda batch: self._log_artifact(batch[0], record), [entry], files=record.files)
        elif isinstance(record, Predictions):
            self._send(lambda batch: self._log_predictions(batch[0]), [entry], files=(record.sample, record.file))
        self._retention.delivered(entry)

    def _log_media(self, entry: Entry, staged: StagedFile) -> None:
        self._refuse_if_changed(staged)
        self._tracker.log_media(entry, locate(self._directory.path, staged))

    def _log_artifact(self, entry: Entry, record: Artifact) -> None:
        files = {}
        shared = []
        for staged in record.files:
            path = files[staged.path] = locate(self._directory.path, staged)
            if not make_private(path):  # usually the guard has done it; here the disk has no room
                shared.append(staged)
            self._refuse_if_changed(staged)
        self._tracker.log_artifact(entry, files)
        for staged in shared:
            self._refuse_if_changed(staged)

    def _log_predictions(self, entry: Entry) -> None:
        """Make the report, and store it as the tracker likes best: in its own way, or as files of an artifact."""
        from unified_tracker.predictions._report import PredictionReport  # draws: 0.5 s, for runs with predictions

        report = PredictionReport(self._directory, entry)
        own_way: Callable[[Entry, PredictionReport], None] | None = getattr(self._tracker, "log_predictions", None)
        if own_way is not None:
            own_way(entry, report)
        else:
            self._tracker.log_artifact(entry._replace(record=report.artifact), report.files)

    def _refuse_if_changed(self, staged: StagedFile) -> None:
        if why := changed(self._directory.path, staged):
            raise RejectedError(why)

    def _send(
        self,
        call: Callable[[Sequence[Entry]], None],
        batch: Sequence[Entry],
        *,
        files: Sequence[StagedFile] = (),
        tries: int = SUSPECT_TRIES,
    ) -> None:
        """Deliver a batch; halve it for as long as it is rejected, down to the single value that is to blame."""
        size = sum(file.size for file in files)
        try:
            self._insist(lambda: call(batch), batch, file_bytes=size, tries=tries)
            self._file_bytes += size
        except RejectedError as error:
            whole, batch = batch, _parts(batch[0]) if len(batch) == 1 else batch
            if len(batch) < 2:
                self._set_aside(whole[0], str(error))
                return
            halves = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            if isinstance(error, SuspectError):  # first what gets through: it shows that the backend takes the like
                tries = FEW_TRIES
                halves = [half for half in halves if not self._gets_through(call, half)]
            for half in halves:
                self._send(call, half, tries=tries)

    def _gets_through(self, call: Callable[[Sequence[Entry]], None], batch: Sequence[Entry]) -> bool:
        try:
            self._insist(lambda: call(batch), batch, tries=FEW_TRIES, verdict=False)
        except RejectedError:
            return False
        return True

    def _insist(
        self,
        call: Callable[[], T],
        batch: Sequence[Entry] = (),
        *,
        file_bytes: int = 0,
        calls: int = 1,
        tries: int = SUSPECT_TRIES,
        verdict: bool = True,
    ) -> T:
        """Call until it succeeds or is rejected. Waits between tries, says what is wrong meanwhile.

        Args:
            call: What to do.
            batch: The records that it is about; if there are none, a rejection is a trouble like any other.
            file_bytes: Size of the files that it sends.
            calls: How many times the usual limit it may take.
            tries: After how many failures that point to the records they are suspected.
            verdict: A record that is suspected is set aside afterwards, not only tried in other company.
        """
        unsorted = suspect = proofs = 0
        alone = verdict and len(batch) == 1 and not _parts(batch[0])
        since = self._clock.monotonic()
        self._backoff.reset()
        while True:
            asked: float | None = None
            self._expect_end_within(calls * self._call_limit_s + file_bytes / BYTES_A_S)
            try:
                result = call()
            except RejectedError as error:
                if batch:
                    raise
                trouble = str(error)
            except DeliveryError as error:
                trouble = str(error)
                asked = error.retry_after_s if isinstance(error, TransientError) else None
                suspect = suspect + 1 if isinstance(error, TransientError) and error.suspect else 0
                if suspect >= tries and batch:
                    proofs = proofs + 1 if self._takes_others(batch if alone else ()) else 0
                    if proofs > alone:  # a value is tried once more: perhaps the trouble was over just now
                        raise SuspectError(trouble) from error
            except Exception as error:
                _log.exception("unsorted error of backend %s", self._backend)
                unsorted += 1
                trouble = f"{type(error).__name__}: {error}"
                if unsorted >= UNSORTED_TRIES and batch:
                    raise RejectedError(trouble) from error
            else:
                if self._state.error is not None:
                    self._publish(error=None)
                return result
            self._publish(error=mask_text(trouble)[:500])
            wait_s = self._backoff.next_s(asked)
            if self._directory.writer_alive():
                since = self._clock.monotonic()
            elif max(self._clock.monotonic() - since, asked or 0.0) > self._linger_s:
                raise GaveUp
            self._clock.sleep(wait_s)

    def _takes_others(self, batch: Sequence[Entry]) -> bool:
        """True if the backend is not simply down.

        Before a value is set aside the backend must take something of the same kind; before a batch is only halved it
        is enough that it takes anything, and `batch` is empty.
        """
        canary: Callable[[Sequence[Entry]], None] | None = getattr(self._tracker, "canary", None)
        if canary is None:
            return False
        try:
            canary(batch)
        except Exception:  # noqa: BLE001 -- whatever it is: the records are not alone in their trouble
            return False
        return True

    def _expect_end_within(self, seconds: float) -> None:
        """Note by when the call that begins now must be over; written only now and then, so that calls stay cheap."""
        now = self._clock.monotonic()
        if self._state.call_until - now < seconds:
            self._publish(call_until=now + 2 * seconds)

    def _set_aside(self, entry: Entry, reason: str) -> None:
        detail = _detail(entry)
        reason = mask_text(reason)
        _log.error("record %d (%s) was refused: %s", entry.sequence, detail, reason)
        self._ledger.set_aside(entry.sequence, detail, reason)
        aside = self._ledger.all_set_aside()
        notes = self._state.notes
        if len(notes) < NOTES:
            notes = (*notes, f"refused {detail}: {reason[:300]}; set aside, the rest goes on")
        self._publish(set_aside=len(aside), notes=notes)

    def _look_for_damage(self) -> None:
        """Note what the journal's reader could not read, for the tags and for the user."""
        found = [f"segment {name}" for name in self._reader.unreadable]
        if self._reader.undecodable:
            found.append(f"{self._reader.undecodable} records behind record {self._held.sequence}")
        new = [what for what in found if what not in self._damage]
        if not new:
            return
        self._damage += new
        self._ledger.put("damage", self._damage)
        text = f"{', '.join(new)} of the journal cannot be read (damaged, or written by a newer version); kept as found"
        _log.error("%s", text)
        self._publish(notes=(*self._state.notes, text)[:NOTES])

    def _acknowledge(self) -> None:
        held = self._tracker.held()
        reached = [mark for mark in self._sent if mark.sequence <= held]
        if reached:
            self._held = reached[-1]
            self._ledger.set_held(self._held)
            self._sent = self._sent[len(reached) :]
        missing = self._read.missing
        if missing > self._state.lost:
            _log.error("%d records were logged and are not in the journal", missing)
        self._told = self._clock.monotonic()
        notes = self._state.notes
        said = [note for note in getattr(self._tracker, "notes", ()) if note not in notes]
        self._publish(notes=(*notes, *said)[:NOTES], read=self._read.sequence, records=self._read.records, lost=missing)
        self._retention.release()

    # ---- the end -----------------------------------------------------------------------------------------------

    def _close(self) -> None:
        finished, lost = self._read.finished, self._read.missing
        status: Status = finished.status if finished else "KILLED"
        ended = finished.ts if finished else int(time.time() * 1000)
        aside = self._ledger.all_set_aside()
        tags = {
            "unified_tracker.delivery": "partial" if aside or lost or self._damage else "complete",
            "unified_tracker.status": status,
        }
        if finished and finished.reason:
            tags["unified_tracker.reason"] = finished.reason
        if aside:
            tags["unified_tracker.set_aside"] = str(len(aside))
            tags["unified_tracker.set_aside_why"] = "; ".join(f"{what}: {why}" for _, what, why in aside[:NOTES])[:5000]
        if lost:
            tags["unified_tracker.lost"] = str(lost)
        self._set_own_tags(tags, ended)
        self._insist(lambda: self._tracker.close(status, ended), file_bytes=self._file_bytes, calls=CLOSE_CALLS)
        if self._sent:
            self._held = self._sent[-1]
            self._ledger.set_held(self._held)
        self._publish(held=self._held.sequence, done=True, error=None)
        self._retention.release()
        self._retention.sweep()

    def _set_own_tags(self, tags: dict[str, str], ts: int = 0) -> None:
        entry = Entry(self._read.sequence, Tags(ts or int(time.time() * 1000), tags), self._read.position)
        self._send(self._tracker.set_tags, [entry])

    def _publish(self, **changes: object) -> None:
        changes.setdefault("held", self._held.sequence)
        changes.setdefault("call_until", 0.0)
        self._state = msgspec.structs.replace(self._state, **changes)
        try:
            write_json(self._directory.lanes / f"{self._backend}.json", self._state)
        except OSError:
            _log.exception("state of lane %s cannot be written", self._backend)


def _batches(kind: type[Record], entries: list[Entry]) -> Iterator[list[Entry]]:
    """Metrics in portions of as many values as fit into one request of a backend, everything else as it is."""
    if kind is not Metrics:
        yield entries
        return
    batch: list[Entry] = []
    values = 0
    for entry in entries:
        count = len(entry.record.values)  # type: ignore[union-attr]  # a `Metrics`
        if batch and values + count > VALUES_A_CALL:
            yield batch
            batch, values = [], 0
        batch.append(entry)
        values += count
    yield batch


def _counted(before: Held, batch: Sequence[Entry]) -> Held:
    """What is known of the journal once a batch of one kind is through."""
    lost, gaps, losses, finished = before.lost, before.gaps, before.losses, before.finished
    last = before.sequence
    if batch[-1].sequence - last != len(batch):  # numbers are missing, or a new attempt has begun
        for entry in batch:
            if entry.sequence >> ATTEMPT_SHIFT != last >> ATTEMPT_SHIFT:
                lost, gaps, losses = lost + max(gaps, losses), 0, 0
                last = entry.sequence >> ATTEMPT_SHIFT << ATTEMPT_SHIFT
            gaps += max(entry.sequence - last - 1, 0)
            last = entry.sequence
    for entry in batch if not isinstance(batch[0].record, Metrics) else ():
        if isinstance(entry.record, Loss):
            losses += entry.record.count
        elif isinstance(entry.record, Started):
            finished = None
        elif isinstance(entry.record, Finished):
            finished = entry.record
    records = before.records + len(batch)
    return Held(batch[-1].sequence, *batch[-1].end, records, lost, gaps, losses, finished)


def _parts(entry: Entry) -> list[Entry]:
    """The values of a record as records of their own, if it has more than one: neighbours of a bad value arrive."""
    record = entry.record
    if isinstance(record, (Metrics, Params, Tags)) and len(record.values) > 1:
        return [
            Entry(entry.sequence, msgspec.structs.replace(record, values={name: value}), entry.end)
            for name, value in record.values.items()
        ]
    return []


def _detail(entry: Entry) -> str:
    record = entry.record
    if isinstance(record, (Metrics, Params, Tags)):
        return f"{type(record).__name__.lower()} {', '.join(list(record.values)[:3])}"
    name = getattr(record, "name", None)
    return f"{type(record).__name__.lower()} {name or ''}".strip()


def _end_with_the_uploader() -> None:
    """End this process as soon as the uploader is gone, which holds the other end of its standard input.

    The next uploader starts a lane of its own, and two must never deliver the same run.
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return  # started by hand

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(PENDING)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    """Deliver one run to one backend. Arguments: run directory, backend, seconds to linger."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    path, backend, linger = arguments
    _end_with_the_uploader()
    directory = RunDirectory(Path(path))
    limit = float(os.environ.get(LIMIT_VARIABLE, CALL_S))
    with FileLock(directory.lanes / f"{backend}.lock"):
        try:
            info = directory.info()
            tracker = _plugins.load(backend).create(info, directory.path, info.backends[backend])
            backoff = Backoff.of_environment()
            lane = Lane(directory, backend, tracker, linger_s=float(linger), call_limit_s=limit, backoff=backoff)
            return lane.run()
        except Exception as error:  # this process ends and is started again: say why, where people look
            state = directory.lane_state(backend) or LaneState(backend, 0)
            trouble = mask_text(f"the lane ended with {type(error).__name__}: {error}")[:500]
            write_json(
                directory.lanes / f"{backend}.json", msgspec.structs.replace(state, error=trouble, call_until=0.0)
            )
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
