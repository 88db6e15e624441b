"""A lane: one run, one backend. Reads the journal, drives the tracker, keeps the ledger.

Runs as a process of its own (`python -m unified_tracker._lane RUN_DIR BACKEND`), started by the uploader, so that a
backend whose client hangs, leaks or dies takes nothing else with it.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from unified_tracker import _plugins
from unified_tracker._backoff import Backoff
from unified_tracker._errors import DeliveryError, RejectedError, TransientError
from unified_tracker._journal import JournalReader
from unified_tracker._ledger import Held, Ledger
from unified_tracker._mask import mask_text
from unified_tracker._rundir import LaneState, RunDirectory, write_json
from unified_tracker._staging import changed, locate
from unified_tracker._tracker import Tracker
from unified_tracker.records import Artifact, Entry, Finished, Loss, Media, Metrics, Params, Started, Status, Tags

POLL_S: Final = 0.2
LINGER_S: Final = 600.0
UNSORTED_TRIES: Final = 5
DONE, PENDING = 0, 2

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
    ) -> None:
        self._directory, self._backend, self._tracker = directory, backend, tracker
        self._linger_s, self._clock = linger_s, clock
        self._ledger = Ledger(directory.lanes / f"{backend}.db")
        self._held = self._ledger.held()  # up to here the run was complete once, even if it is rebuilt now
        self._reader = JournalReader(directory.journal, self._held.position)
        self._sent: list[tuple[int, Held]] = []
        self._state = LaneState(backend, os.getpid(), held=self._held.sequence, records=self._held.records)
        self._backoff = Backoff()
        self._finished: Finished | None = None
        self._lost = 0

    def run(self) -> int:
        """Deliver until the run has ended and the backend holds everything.

        Returns:
            0 when done, 2 when it gave up for now.
        """
        before = self._directory.lane_state(self._backend)
        if (
            before is not None
            and before.done
            and not self._directory.writer_alive()
            and not self._reader.read(final=True)
        ):
            return DONE
        if getattr(self._tracker, "rebuilds", False):  # a stranger's tracker may not know the attribute
            self._held = Held()
            self._state = msgspec.structs.replace(self._state, records=0)
        self._reader = JournalReader(self._directory.journal, self._held.position)
        self._publish()
        try:
            address = self._insist(lambda: self._tracker.open(self._directory.info()))
            self._publish(address=address, error=None)
            while True:
                over = not self._directory.writer_alive()  # asked before reading: what came before it is then read
                entries = self._reader.read(final=over)
                if entries:
                    self._deliver(entries)
                elif over:
                    break
                else:
                    self._clock.sleep(POLL_S)
            self._close()
        except GaveUp:
            return PENDING
        finally:
            self._ledger.close()
        return DONE

    # ---- delivering --------------------------------------------------------------------------------------------

    def _deliver(self, entries: Sequence[Entry]) -> None:
        for kind, group in groupby(entries, key=lambda entry: type(entry.record)):
            batch = list(group)
            if kind is Metrics:
                self._send(self._tracker.log_metrics, batch)
            elif kind is Params:
                self._send(self._tracker.log_params, batch)
            elif kind is Tags:
                self._send(self._tracker.set_tags, batch)
            else:
                for entry in batch:
                    self._deliver_one(entry)
            last = batch[-1]
            self._sent.append((last.sequence, Held(last.sequence, *last.end, records=self._state.records + len(batch))))
            self._state = msgspec.structs.replace(
                self._state, read=last.sequence, records=self._state.records + len(batch)
            )
        self._acknowledge()
        self._publish()

    def _deliver_one(self, entry: Entry) -> None:
        record = entry.record
        if isinstance(record, Finished):
            self._finished = record
        elif isinstance(record, Started):
            self._finished = None
        elif isinstance(record, Loss):
            self._lost += record.count
        elif isinstance(record, Media):
            file = locate(self._directory.path, record.file)
            self._send(lambda batch: self._tracker.log_media(batch[0], file), [entry])
        elif isinstance(record, Artifact):
            self._send(lambda batch: self._log_artifact(batch[0], record), [entry])

    def _log_artifact(self, entry: Entry, record: Artifact) -> None:
        files = {}
        for staged in record.files:
            self._make_private(locate(self._directory.path, staged))
            if why := changed(self._directory.path, staged):
                raise RejectedError(why)
            files[staged.path] = locate(self._directory.path, staged)
        self._tracker.log_artifact(entry, files)

    @staticmethod
    def _make_private(path: Path) -> None:
        """Turn a hard link into a file of its own: from here on nobody can write over its bytes in place."""
        try:
            if path.stat().st_nlink < 2:
                return
            copy = path.with_name(f".{path.name}.{os.getpid()}")
            shutil.copy2(path, copy)  # keeps the modification time, by which `changed` recognises the bytes
            before = path.stat()
            after = copy.stat()
            if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                os.replace(copy, path)
            else:  # written over while it was copied: `changed` says so
                copy.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise TransientError(f"{path} cannot be copied: {error}") from error

    def _send(self, call: Callable[[Sequence[Entry]], None], batch: Sequence[Entry]) -> None:
        """Deliver a batch; halve it for as long as it is rejected, down to the single value that is to blame."""
        try:
            self._insist(lambda: call(batch))
        except RejectedError as error:
            if len(batch) == 1 and (parts := _parts(batch[0])):
                batch = parts
            if len(batch) == 1:
                self._set_aside(batch[0], str(error))
                return
            middle = len(batch) // 2
            self._send(call, batch[:middle])
            self._send(call, batch[middle:])

    def _insist(self, call: Callable[[], T]) -> T:
        """Call until it succeeds or is rejected. Waits between tries, says what is wrong meanwhile."""
        unsorted = 0
        since = self._clock.monotonic()
        self._backoff.reset()
        while True:
            asked: float | None = None
            try:
                result = call()
            except RejectedError:
                raise
            except DeliveryError as error:
                trouble = str(error)
                asked = error.retry_after_s if isinstance(error, TransientError) else None
            except Exception as error:
                _log.exception("unsorted error of backend %s", self._backend)
                unsorted += 1
                trouble = f"{type(error).__name__}: {error}"
                if unsorted >= UNSORTED_TRIES:
                    raise RejectedError(trouble) from error
            else:
                if self._state.error is not None:
                    self._publish(error=None)
                return result
            self._publish(error=mask_text(trouble)[:500])
            if self._directory.writer_alive():
                since = self._clock.monotonic()
            elif self._clock.monotonic() - since > self._linger_s:
                raise GaveUp
            self._clock.sleep(self._backoff.next_s(asked))

    def _set_aside(self, entry: Entry, reason: str) -> None:
        detail = _detail(entry)
        reason = mask_text(reason)
        _log.error("record %d (%s) was refused: %s", entry.sequence, detail, reason)
        self._ledger.set_aside(entry.sequence, detail, reason)
        aside = self._ledger.all_set_aside()
        notes = self._state.notes
        if len(notes) < 20:
            notes = (*notes, f"refused {detail}: {reason[:300]}; set aside, the rest goes on")
        self._publish(set_aside=len(aside), notes=notes)

    def _acknowledge(self) -> None:
        held = self._tracker.held()
        reached = [mark for sequence, mark in self._sent if sequence <= held]
        if reached:
            self._held = reached[-1]
            self._ledger.set_held(self._held)
            self._sent = [(sequence, mark) for sequence, mark in self._sent if sequence > held]

    # ---- the end -----------------------------------------------------------------------------------------------

    def _close(self) -> None:
        status: Status = self._finished.status if self._finished else "KILLED"
        ended = self._finished.ts if self._finished else int(time.time() * 1000)
        aside = self._ledger.all_set_aside()
        lost = self._lost
        tags = {
            "unified_tracker.delivery": "partial" if aside or lost or self._reader.skipped_bytes else "complete",
            "unified_tracker.status": status,
        }
        if self._finished and self._finished.reason:
            tags["unified_tracker.reason"] = self._finished.reason
        if aside:
            tags["unified_tracker.set_aside"] = str(len(aside))
        if lost:
            tags["unified_tracker.lost"] = str(lost)
        last = Entry(self._state.read, Tags(ended, tags), self._reader.position)
        self._send(self._tracker.set_tags, [last])
        self._insist(lambda: self._tracker.close(status, ended))
        if self._sent:
            self._held = self._sent[-1][1]
            self._ledger.set_held(self._held)
        self._publish(held=self._held.sequence, done=True, error=None)

    def _publish(self, **changes: object) -> None:
        changes.setdefault("held", self._held.sequence)
        self._state = msgspec.structs.replace(self._state, **changes)
        try:
            write_json(self._directory.lanes / f"{self._backend}.json", self._state)
        except OSError:
            _log.exception("state of lane %s cannot be written", self._backend)


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


def main(arguments: Sequence[str]) -> int:
    """Deliver one run to one backend. Arguments: run directory, backend, seconds to linger."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    path, backend, linger = arguments
    directory = RunDirectory(Path(path))
    info = directory.info()
    tracker = _plugins.load(backend).create(info, directory.path, info.backends[backend])
    return Lane(directory, backend, tracker, linger_s=float(linger)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
