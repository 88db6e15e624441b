"""The survey of a journal: how much of it stands behind a record, how the training ended, what could not be written.

Answered from file sizes, from the records at either end of a segment and from a search for bytes: a journal of a
million records is not decoded for it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Final

import msgspec

from unified_tracker._journal import ATTEMPT_SHIFT, HEADER_BYTES, JournalReader, segments
from unified_tracker.records import Entry, Finished, Loss, Position, Status

TAIL_BYTES: Final = 32 << 10
LOSS_MARK: Final = msgspec.msgpack.encode(Loss(0, 0, ""))[:6]  # the array's length and the tag "loss"


class Segment:
    """One file of the journal, as large as it was when the survey began."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = path.name
        self.attempt = int(path.name[:6])
        self.size = path.stat().st_size
        self.bytes = max(self.size - HEADER_BYTES, 0)

    @cached_property
    def first(self) -> Entry | None:
        """The first intact record; None if there is none."""
        return next(self.entries(max_bytes=TAIL_BYTES), None)

    @cached_property
    def last(self) -> Entry | None:
        """The last intact record; None if there is none."""
        window = TAIL_BYTES
        while True:
            start = max(self.size - window, HEADER_BYTES)
            found = None
            for entry in self.entries(start, max_bytes=window):
                found = entry
            if found is not None or start == HEADER_BYTES:
                return found
            window *= 4

    def entries(self, start: int = HEADER_BYTES, *, max_bytes: int = 1 << 20) -> Iterator[Entry]:
        """Intact records from a place on; between two records is not required."""
        reader = JournalReader(self._path.parent, Position(self.name, start))
        while True:
            for entry in reader.read(max_bytes, final=True) or (None,):
                if entry is None or entry.end.segment != self.name:
                    return
                yield entry

    def lost(self) -> int:
        """Records that could not be written, as the records of this segment tell."""
        with self._path.open("rb") as file:
            if not self.size:
                return 0
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(LOSS_MARK) < 0:
                    return 0
        return sum(entry.record.count for entry in self.entries() if isinstance(entry.record, Loss))

    def bytes_after(self, sequence: int) -> int:
        """About how many bytes stand behind a record: sizes of records are taken to be alike within a segment."""
        if self.first is None or self.last is None or sequence >= self.last.sequence:
            return 0
        if sequence < self.first.sequence:
            return self.bytes
        span = self.last.sequence - self.first.sequence + 1
        return self.bytes * (self.last.sequence - sequence) // span


class JournalSurvey:
    """What a journal holds. Reads a few kilobytes of each attempt, except for `lost`, which searches all of it."""

    def __init__(self, folder: Path) -> None:
        """Take the sizes of the segments; what is appended later is not seen."""
        self._segments = [Segment(path) for path in segments(folder)]

    @property
    def bytes(self) -> int:
        """Size of all records."""
        return sum(segment.bytes for segment in self._segments)

    @cached_property
    def last(self) -> Entry | None:
        """The last intact record; None in an empty journal."""
        return next((segment.last for segment in reversed(self._segments) if segment.last is not None), None)

    @property
    def status(self) -> Status:
        """How the training ended; KILLED if it could not say so."""
        last = self.last.record if self.last else None
        return last.status if isinstance(last, Finished) else "KILLED"

    def records_after(self, sequence: int) -> int:
        """How many records stand behind a record, by their numbers: one that could not be written counts too."""
        attempt = sequence >> ATTEMPT_SHIFT
        count = 0
        for number, group in groupby(self._segments, key=lambda segment: segment.attempt):
            if number >= attempt:
                last = next((segment.last for segment in reversed(list(group)) if segment.last is not None), None)
                begin = sequence if number == attempt else number << ATTEMPT_SHIFT
                count += max(last.sequence - begin, 0) if last else 0
        return count

    def bytes_after(self, sequence: int) -> int:
        """About how many bytes of records stand behind a record; exact at the ends of segments."""
        count = 0
        for segment in reversed(self._segments):
            if segment.first is not None and segment.first.sequence <= sequence:
                return count + segment.bytes_after(sequence)
            count += segment.bytes
        return count

    def lost(self) -> int:
        """How many records could not be written to the journal (disk full), and so are nowhere."""
        return sum(segment.lost() for segment in self._segments)
