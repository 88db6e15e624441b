"""A lane: one run, one backend. Reads the journal, hands it to the courier batch by batch, keeps the ledger.

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
from typing import Final

import msgspec
from filelock import FileLock

from unified_tracker import _plugins
from unified_tracker._backoff import Backoff, Clock
from unified_tracker._courier import CALL_S, LIMIT_VARIABLE, Courier, GaveUp
from unified_tracker._errors import RejectedError
from unified_tracker._guard import make_private
from unified_tracker._inputs import TAG, Inputs, as_json, identity
from unified_tracker._journal import ATTEMPT_SHIFT, JournalReader
from unified_tracker._ledger import Held, Ledger
from unified_tracker._mask import mask_text
from unified_tracker._progress import NOTES, Progress
from unified_tracker._retention import Retention
from unified_tracker._rundir import LaneState, RunDirectory, write_json
from unified_tracker._staging import SHARED, changed, locate
from unified_tracker._tracker import Tracker
from unified_tracker.records import (
    Artifact,
    Entry,
    Finished,
    Input,
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
IMAGES_A_CALL: Final = 50  # with predictions: shrunk, stored and uploaded in the time of one call at the least
CLOSE_CALLS: Final = 8  # closing may wait for everything that a client has queued
DONE, PENDING = 0, 2

_log = logging.getLogger("unified_tracker.lane")


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
        self._clock = clock
        self._ledger = Ledger(directory.lanes / f"{backend}.db")
        self._held = self._ledger.held()  # up to here the run was complete once, even if it is rebuilt now
        self._read = self._held
        self._reader = JournalReader(directory.journal, self._held.position)
        self._damage: list[str] = self._ledger.get("damage", list[str]) or []
        self._sent: list[Held] = []
        self._before = directory.lane_state(backend)
        state = LaneState(
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
        self._inputs = Inputs(directory)
        self._progress = Progress(directory, state)
        self._courier = Courier(
            directory,
            tracker,
            self._ledger,
            self._progress,
            linger_s=linger_s,
            call_limit_s=call_limit_s,
            clock=clock,
            backoff=backoff,
        )
        self._told = 0.0

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
            self._progress.publish(held=0, records=0, rebuilds=True)
        elif getattr(self._tracker, "needs_files", False):
            self._progress.publish(rebuilds=True)
        self._reader = JournalReader(self._directory.journal, self._held.position)
        self._progress.publish()
        try:
            address = self._courier.insist(lambda: self._tracker.open(self._directory.info()))
            before = self._progress.state.address
            if before is not None and before.id != address.id:
                self._begin_anew(f"run {before.id} has become {address.id}: everything is delivered again")
            self._progress.publish(address=address, error=None)
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
        self._progress.note(why, held=0, records=0, read=0)

    # ---- delivering --------------------------------------------------------------------------------------------

    def _deliver(self, entries: Sequence[Entry]) -> None:
        for kind, group in groupby(entries, key=lambda entry: type(entry.record)):
            for batch in _batches(kind, list(group)):
                if kind is Metrics:
                    self._courier.send(self._tracker.log_metrics, batch)
                elif kind is Params:
                    self._courier.send(self._tracker.log_params, batch)
                elif kind is Tags:
                    self._courier.send(self._tracker.set_tags, batch)
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
            self._courier.send(lambda batch: self._log_media(batch[0], record.file), [entry], files=(record.file,))
        elif isinstance(record, Artifact):
            self._courier.send(lambda batch: self._log_artifact(batch[0], record), [entry], files=record.files)
        elif isinstance(record, Predictions):
            calls = 2 + record.images // IMAGES_A_CALL
            self._courier.send(lambda batch: self._log_predictions(batch[0]), [entry], calls=calls)
        elif isinstance(record, Input):
            files = (record.file,) if record.file is not None else ()
            self._courier.send(lambda batch: self._log_input(batch[0]), [entry], files=files)
        self._retention.delivered(entry)

    def _log_media(self, entry: Entry, staged: StagedFile) -> None:
        self._refuse_if_changed(staged)
        self._tracker.log_media(entry, locate(self._directory.path, staged))

    def _log_artifact(self, entry: Entry, record: Artifact) -> None:
        files = {}
        shared = []
        for staged in record.files:
            path = files[staged.path] = locate(self._directory.path, staged)
            # Usually the guard has made a link private; here the disk has no room, or it is meant to stay shared.
            if staged.staged.startswith(f"{SHARED}/") or not make_private(path):
                shared.append(staged)
            self._refuse_if_changed(staged)
        self._tracker.log_artifact(entry, files)
        for staged in shared:
            self._refuse_if_changed(staged)
        if record.type == "model" and record.name is not None and record.keep_last and not self._offline():
            self._prune(record.name, record.keep_last, record.keep_every)

    def _offline(self) -> bool:
        """Whether the backend writes a file on this machine, which is rebuilt from what is staged."""
        return self._directory.info().backends.get(self._backend, {}).get("mode") == "offline"

    def _prune(self, name: str, last: int, every: int) -> None:
        """Remove versions that the backend need not keep. That it cannot be done now is no reason to wait."""
        from unified_tracker._pruning import prune  # with the store, which reads: for runs that want it
        from unified_tracker._store import open_store

        options = self._directory.info().reading(self._backend)
        try:
            gone = prune(open_store(self._backend, options, checked=True), name, last, every)
        except Exception as error:  # noqa: BLE001 -- the next checkpoint tries again
            _log.warning("old versions of %s are kept for now: %s", name, mask_text(str(error)))
        else:
            for version in gone:
                _log.info("removed %s, of step %s", version.reference, version.step)

    def _log_predictions(self, entry: Entry) -> None:
        """Make the report, and store it as the tracker likes best: in its own way, or as files of an artifact."""
        from unified_tracker.predictions._report import PredictionReport  # draws: 0.5 s, for runs with predictions

        report = PredictionReport(self._directory, entry)
        own_way: Callable[[Entry, PredictionReport], None] | None = getattr(self._tracker, "log_predictions", None)
        if own_way is not None:
            own_way(entry, report)
        else:
            self._tracker.log_artifact(entry._replace(record=report.artifact), report.files)

    def _log_input(self, entry: Entry) -> None:
        """Complete it, and store it as the tracker likes best: in its own way, or as a tag."""
        entry, warnings = self._inputs.completed(entry)
        record = entry.record
        assert isinstance(record, Input)  # noqa: S101 -- it was one before
        own_way: Callable[[Entry], None] | None = getattr(self._tracker, "log_input", None)
        tags = {f"unified_tracker.warning.{name}": text for name, text in warnings.items()}
        if own_way is not None:
            own_way(entry)
        else:
            tags[TAG + identity(record)] = as_json([record])
        if tags:
            self._tracker.set_tags([entry._replace(record=Tags(record.ts, tags))])
        if warnings and self._backend == next(iter(self._directory.info().backends)):  # once, however many backends
            self._progress.note(*warnings.values())

    def _refuse_if_changed(self, staged: StagedFile) -> None:
        if why := changed(self._directory.path, staged):
            raise RejectedError(why)

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
        self._progress.note(text)

    def _acknowledge(self) -> None:
        held = self._tracker.held()
        reached = [mark for mark in self._sent if mark.sequence <= held]
        if reached:
            self._held = reached[-1]
            self._ledger.set_held(self._held)
            self._sent = self._sent[len(reached) :]
        missing = self._read.missing
        if missing > self._progress.state.lost:
            _log.error("%d records were logged and are not in the journal", missing)
        self._told = self._clock.monotonic()
        told = self._progress.state.notes
        said = [note for note in getattr(self._tracker, "notes", ()) if note not in told]
        held, read, records = self._held.sequence, self._read.sequence, self._read.records
        self._progress.note(*said, held=held, read=read, records=records, lost=missing)
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
        self._courier.insist(
            lambda: self._tracker.close(status, ended), file_bytes=self._courier.file_bytes, calls=CLOSE_CALLS
        )
        if self._sent:
            self._held = self._sent[-1]
            self._ledger.set_held(self._held)
        self._progress.publish(held=self._held.sequence, done=True, error=None)
        self._retention.release()
        self._retention.sweep()

    def _set_own_tags(self, tags: dict[str, str], ts: int = 0) -> None:
        entry = Entry(self._read.sequence, Tags(ts or int(time.time() * 1000), tags), self._read.position)
        self._courier.send(self._tracker.set_tags, [entry])


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
