"""The courier: brings one batch to one backend, however long it takes, and finds out which record is to blame."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from unified_tracker._backoff import Backoff, Clock
from unified_tracker._errors import DeliveryError, RejectedError, TransientError
from unified_tracker._ledger import Ledger
from unified_tracker._mask import mask_text
from unified_tracker._progress import Progress
from unified_tracker._rundir import RunDirectory
from unified_tracker._tracker import Tracker
from unified_tracker.records import Entry, Metrics, Params, StagedFile, Tags

UNSORTED_TRIES: Final = 5
SUSPECT_TRIES, FEW_TRIES = 5, 2  # failures after which records are suspected; their halves are so already

# A call that is not over by then hangs: the uploader ends the lane's process and starts it again.
LIMIT_VARIABLE: Final = "UNIFIED_TRACKER_CALL_LIMIT_S"
CALL_S: Final = 120.0
BYTES_A_S: Final = 128 << 10

_log = logging.getLogger("unified_tracker.lane")
T = TypeVar("T")


class GaveUp(Exception):  # noqa: N818 -- a decision, not an error
    """The trainer is gone and the backend does not answer: what is pending waits for the next `sync`."""


class SuspectError(RejectedError):
    """The backend fails at these records again and again, while it takes others."""


class Courier:
    """Calls a tracker until it takes what it is given. One call at a time.

    Blocking: for as long as the trouble lasts and the training lives, then for `linger_s`; says meanwhile what is
    wrong.
    Crash: what was being brought comes again, from the journal.
    """

    def __init__(
        self,
        directory: RunDirectory,
        tracker: Tracker,
        ledger: Ledger,
        progress: Progress,
        *,
        linger_s: float,
        call_limit_s: float = CALL_S,
        clock: Clock = time,
        backoff: Backoff | None = None,
    ) -> None:
        self._directory, self._tracker = directory, tracker
        self._ledger, self._progress = ledger, progress
        self._linger_s, self._call_limit_s = linger_s, call_limit_s
        self._clock, self._backoff = clock, backoff or Backoff()
        self.file_bytes = 0

    def send(
        self,
        call: Callable[[Sequence[Entry]], None],
        batch: Sequence[Entry],
        *,
        files: Sequence[StagedFile] = (),
        calls: int = 1,
        tries: int = SUSPECT_TRIES,
    ) -> None:
        """Deliver a batch; halve it for as long as it is rejected, down to the single value that is to blame.

        Args:
            call, batch: What to do, and the records that it is about.
            files: What it sends.
            calls, tries: As in `insist`.

        Raises:
            GaveUp: For now.
        """
        size = sum(file.size for file in files)
        try:
            self.insist(lambda: call(batch), batch, file_bytes=size, calls=calls, tries=tries)
            self.file_bytes += size
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
                self.send(call, half, tries=tries)

    def _gets_through(self, call: Callable[[Sequence[Entry]], None], batch: Sequence[Entry]) -> bool:
        try:
            self.insist(lambda: call(batch), batch, tries=FEW_TRIES, verdict=False)
        except RejectedError:
            return False
        return True

    def insist(
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

        Raises:
            RejectedError: The batch is.
            GaveUp: For now.
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
                _log.exception("unsorted error of backend %s", self._progress.state.backend)
                unsorted += 1
                trouble = f"{type(error).__name__}: {error}"
                if unsorted >= UNSORTED_TRIES and batch:
                    raise RejectedError(trouble) from error
            else:
                if self._progress.state.error is not None:
                    self._progress.publish(error=None)
                return result
            self._progress.publish(error=mask_text(trouble)[:500])
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
        if self._progress.state.call_until - now < seconds:
            self._progress.publish(call_until=now + 2 * seconds)

    def _set_aside(self, entry: Entry, reason: str) -> None:
        detail = _detail(entry)
        reason = mask_text(reason)
        _log.error("record %d (%s) was refused: %s", entry.sequence, detail, reason)
        self._ledger.set_aside(entry.sequence, detail, reason)
        note = f"refused {detail}: {reason[:300]}; set aside, the rest goes on"
        self._progress.note(note, set_aside=len(self._ledger.all_set_aside()))


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
