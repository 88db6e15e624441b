"""The journal: append-only segments of CRC-framed records in the run directory.

One record is one `write(2)`: when `Journal.append` has returned, the record survives the death of every process
(not the death of the machine). A new process never appends to a segment that another one wrote, so a torn tail stays
where it is and is stepped over.

Segment: a 32-byte header (magic, format version, attempt, nonce), then frames::

    sync u16 | type u8 | flags u8 | length u32 | sequence u64 | crc32 u32 | payload (msgpack)

The CRC covers the frame from `sync` to the end of the payload and starts from the segment's random nonce: bytes of
a journal that somebody logs as a string are never taken for a record when the reader searches for the next frame.
Sequence numbers are `attempt << 40 | count`: strictly increasing over the life of the run, so gaps can be counted.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from unified_tracker.records import Entry, Metrics, Number, Position, Record

MAGIC: Final = b"\x89UTJ\r\n\x1a\n"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sHHIQ8x")  # magic, version, reserved, nonce, attempt
FRAME: Final = struct.Struct("<HBBIQ")
CRC: Final = struct.Struct("<I")
SYNC: Final = 0x7AC3
HEAD: Final = FRAME.size + CRC.size
MAX_PAYLOAD: Final = 16 << 20
SEGMENT_BYTES: Final = 8 << 20
ATTEMPT_SHIFT: Final = 40
CLOCK_STEP_MS: Final = 1000  # a clock that goes back further than this was set, and is believed
SEGMENT_NAME: Final = re.compile(r"(\d{6})-(\d{6})\.utj")

_log = logging.getLogger("unified_tracker")
_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def segments(folder: Path) -> list[Path]:
    """Segments of a journal, oldest first."""
    return sorted(path for path in folder.glob("*.utj") if SEGMENT_NAME.fullmatch(path.name))


class Journal:
    """The writing end. Held by the training process.

    Threads: any thread may append; one lock, never held over anything but encoding and one write.
    Fork: a child's copy is dead: `append` returns False there, nothing is written twice.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Begin a new attempt behind whatever the folder holds.

        Raises:
            OSError: The folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        before = [int(path.name[:6]) for path in segments(folder)]
        self.folder = folder
        self.attempt = max(before, default=0) + 1
        self.lost = 0
        self.first_error: str | None = None
        self._segment_bytes = segment_bytes
        self._encode = msgspec.msgpack.Encoder().encode
        self._lock = threading.Lock()
        self._sequence = self.attempt << ATTEMPT_SHIFT
        self._last_ms = 0
        self._steps_in_ms: set[int | None] = set()
        self._number = 0
        self._fd = -1
        self._open_segment()
        _open_journals.add(self)

    @property
    def sequence(self) -> int:
        """Sequence number of the last record written."""
        return self._sequence

    @property
    def closed(self) -> bool:
        """True after `close`, and in a forked child."""
        return self._fd < 0

    def append(self, record: Record) -> bool:
        """Write one record.

        Returns:
            False when it was not written: closed, forked child, or the file system refused (counted in `lost`).

        Raises:
            TypeError, ValueError, OverflowError: The record cannot be encoded or exceeds 16 MiB; nothing was written.
        """
        with self._lock:
            return self._write(self._encode(record))

    def append_metrics(self, values: dict[str, Number], step: int | None, bad_step: str | None = None) -> bool:
        """Write a `Metrics` record, stamped so that no two calls of a run agree in both step and time.

        MLflow takes rows that agree in key, step, value and millisecond for one row: a second honest call within the
        same millisecond is moved to the next one. Otherwise as `append`.
        """
        with self._lock:
            ms = time.time_ns() // 1_000_000
            if self._last_ms - CLOCK_STEP_MS < ms <= self._last_ms:
                ms = self._last_ms
                if step in self._steps_in_ms:
                    ms += 1
            if ms != self._last_ms:
                self._last_ms = ms
                self._steps_in_ms.clear()
            self._steps_in_ms.add(step)
            return self._write(self._encode(Metrics(ms, step, values, bad_step)))

    def _write(self, payload: bytes) -> bool:
        if self._fd < 0:
            return False
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"record of {len(payload)} bytes exceeds the journal's limit of {MAX_PAYLOAD}")
        head = FRAME.pack(SYNC, 1, 0, len(payload), self._sequence + 1)
        crc = zlib.crc32(payload, zlib.crc32(head, self._nonce))
        frame = head + CRC.pack(crc) + payload
        try:
            written = os.write(self._fd, frame)
        except OSError as error:
            self._mend(error)
            return False
        if written != len(frame):
            self._mend(OSError(f"only {written} of {len(frame)} bytes were written"))
            return False
        self._sequence += 1
        self._size += written
        if self._size >= self._segment_bytes:
            self._roll()
        return True

    def close(self) -> None:
        """Close the segment. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
        _open_journals.discard(self)

    def forget_loss(self) -> tuple[int, str]:
        """Hand over the count of records lost so far, and the first reason, for a `Loss` record."""
        with self._lock:
            count, self.lost = self.lost, 0
            return count, self.first_error or ""

    def _open_segment(self) -> None:
        self._number += 1
        path = self.folder / f"{self.attempt:06d}-{self._number:06d}.utj"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
        nonce = int.from_bytes(os.urandom(4), "little")
        try:
            os.write(fd, HEADER.pack(MAGIC, VERSION, 0, nonce, self.attempt))
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._nonce, self._size = fd, nonce, HEADER.size

    def _roll(self) -> None:
        try:
            self._open_segment()
        except OSError as error:  # stay on the old segment: it grows beyond its limit, nothing is lost
            self._number -= 1
            self._size = 0
            self.first_error = self.first_error or str(error)

    def _mend(self, error: OSError) -> None:
        """After a failed write: cut the half-written frame off, count, go on."""
        self.lost += 1
        self._sequence += 1  # the gap makes the loss countable by the reader
        self.first_error = self.first_error or str(error)
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            _log.debug("journal tail could not be cut; the reader steps over it", exc_info=True)

    def _abandon(self) -> None:
        """In a forked child: never write, never hold a lock that a vanished thread holds."""
        self._lock = threading.Lock()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _abandon_all() -> None:
    for journal in list(_open_journals):
        journal._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


class JournalReader:
    """The reading end: goes on from any `Position`, follows a journal that grows, steps over damage.

    Attributes:
        skipped_bytes: Bytes that belonged to no valid frame.
        unreadable: Frames that were intact but could not be decoded (written by a newer version).
    """

    def __init__(self, folder: Path, start: Position = Position()) -> None:  # noqa: B008 -- immutable
        self.folder = folder
        self.position = start
        self.skipped_bytes = 0
        self.unreadable = 0
        self._decode = msgspec.msgpack.Decoder(Record).decode
        self._nonces: dict[str, int | None] = {}

    def read(self, max_bytes: int = 1 << 20, *, final: bool = False) -> list[Entry]:
        """Read what is there, about `max_bytes` of it.

        Args:
            max_bytes: Soft limit; a frame that is longer is read whole.
            final: The writer is gone: an incomplete tail of the last segment is damage, not a frame to wait for.

        Returns:
            Whole records in order; empty when there is none yet.
        """
        entries: list[Entry] = []
        names = [path.name for path in segments(self.folder)]
        for index, name in enumerate(names):
            if name < self.position.segment:
                continue
            if name > self.position.segment:
                self.position = Position(name, 0)
            last = index == len(names) - 1
            entries.extend(self._read_segment(name, max_bytes, complete=final or not last))
            if entries:
                break
        return entries

    def _read_segment(self, name: str, max_bytes: int, *, complete: bool) -> Iterator[Entry]:
        with (self.folder / name).open("rb") as file:
            nonce = self._nonce(name, file.read(HEADER.size), complete=complete)
            if nonce is None:
                return
            offset = max(self.position.offset, HEADER.size)
            file.seek(offset)
            buffer = file.read(max(max_bytes, HEAD))
            size = os.fstat(file.fileno()).st_size
            if len(buffer) >= HEAD:
                need = HEAD + FRAME.unpack_from(buffer)[3]
                if len(buffer) < need <= MAX_PAYLOAD + HEAD:
                    buffer += file.read(need - len(buffer))
        at_end = offset + len(buffer) >= size
        yield from self._frames(name, nonce, offset, buffer, complete=complete and at_end)

    def _frames(self, name: str, nonce: int, offset: int, buffer: bytes, *, complete: bool) -> Iterator[Entry]:
        at, view = 0, memoryview(buffer)
        while at + HEAD <= len(buffer):
            sync, _type, _flags, length, sequence = FRAME.unpack_from(buffer, at)
            end = at + HEAD + length
            if sync == SYNC and length <= MAX_PAYLOAD:
                if end > len(buffer) and not complete:
                    break  # not all there yet
                if end <= len(buffer):
                    (crc,) = CRC.unpack_from(buffer, at + FRAME.size)
                    payload = view[at + HEAD : end]
                    if zlib.crc32(payload, zlib.crc32(view[at : at + FRAME.size], nonce)) == crc:
                        at = end
                        self.position = Position(name, offset + at)
                        try:
                            record = self._decode(payload)
                        except (msgspec.DecodeError, RecursionError):
                            self.unreadable += 1
                            continue
                        yield Entry(sequence, record, self.position)
                        continue
            at = self._next_sync(buffer, at)
            self.position = Position(name, offset + at)
        if complete and at < len(buffer):
            self.skipped_bytes += len(buffer) - at
            self.position = Position(name, offset + len(buffer))

    def _next_sync(self, buffer: bytes, at: int) -> int:
        found = buffer.find(SYNC.to_bytes(2, "little"), at + 1)
        to = found if found >= 0 else len(buffer) - 1
        self.skipped_bytes += to - at
        return to

    def _nonce(self, name: str, header: bytes, *, complete: bool) -> int | None:
        if name in self._nonces:
            return self._nonces[name]
        if len(header) < HEADER.size and not complete:
            return None
        nonce: int | None = None
        if len(header) == HEADER.size:
            magic, version, _, candidate, _ = HEADER.unpack(header)
            if magic == MAGIC and version == VERSION:
                nonce = candidate
        if nonce is None:
            _log.warning("journal segment %s has no readable header; its records stay where they are", name)
            self.unreadable += 1
        self._nonces[name] = nonce
        return nonce


def now_ms() -> int:
    """Wall clock in milliseconds since the epoch, as every record carries it."""
    return time.time_ns() // 1_000_000
