"""The journal: append-only segments of CRC-framed records in the run directory.

One record is one `write(2)`: when `Journal.append` has returned, the record survives the death of every process
(not the death of the machine). A new process never appends to a segment that another one wrote, so a torn tail stays
where it is and is stepped over.

Segment: a header (magic, format version, attempt, nonce; written twice, each copy with its CRC), then frames::

    sync u16 | type u8 | flags u8 | length u32 | sequence u64 | crc32 u32 | payload (msgpack)

The CRC covers the frame from `sync` to the end of the payload and starts from the segment's random nonce: bytes of
a journal that somebody logs as a string are never taken for a record when the reader searches for the next frame.
Sequence numbers are `attempt << 40 | count`: strictly increasing over the life of the run, so gaps can be counted.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from unified_tracker.records import Entry, Loss, Metrics, Number, Position, Record

MAGIC: Final = b"\x89UTJ\r\n\x1a\n"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sHHIQ4x")  # magic, version, reserved, nonce, attempt; its CRC follows
FRAME: Final = struct.Struct("<HBBIQ")
CRC: Final = struct.Struct("<I")
HEADER_COPIES: Final = 2  # without the nonce no record of the segment could be read
HEADER_BYTES: Final = HEADER_COPIES * (HEADER.size + CRC.size)
SYNC: Final = 0x7AC3
FRAME_HEAD: Final = struct.Struct("<HBBIQI")  # FRAME and its CRC
HEAD: Final = FRAME_HEAD.size
MAX_PAYLOAD: Final = 16 << 20
SEGMENT_BYTES: Final = 8 << 20
RESERVE: Final = "reserve"
RESERVE_BYTES: Final = 64 << 10
READ_BYTES: Final = 1 << 20
ATTEMPT_SHIFT: Final = 40
CLOCK_STEP_MS: Final = 1000  # a clock that goes back further than this was set, and is believed
SEGMENT_NAME: Final = re.compile(r"(\d{6})-(\d{6})\.utj")

_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def segments(folder: Path) -> list[Path]:
    """Segments of a journal, oldest first."""
    return sorted(path for path in folder.glob("*.utj") if SEGMENT_NAME.fullmatch(path.name))


class Journal:
    """The writing end. Held by the training process.

    Threads: any thread may append; one lock, never held over anything but encoding and one write.
    Signals: a handler that appends in the middle of its own thread's append is served right after that one.
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
        self.lost = self._reported = 0
        self.first_error: str | None = None
        self._segment_bytes = segment_bytes
        self._encode = msgspec.msgpack.Encoder().encode
        self._lock = threading.RLock()
        self._busy = False
        self._interrupting: list[Callable[[], object]] = []
        self._sequence = self.attempt << ATTEMPT_SHIFT
        self._clock_ms = self._last_ms = 0
        self._steps_in_ms: set[int | None] = set()
        self._number = 0
        self._fd = -1
        self._open_segment()
        self._keep_reserve()
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
            if self._busy:
                self._interrupting.append(lambda: self.append(record))
                return True
            self._busy = True
            try:
                return self._write(self._encode(record))
            finally:
                self._busy = False
                if self._interrupting:
                    self._catch_up()

    def append_metrics(self, values: dict[str, Number], step: int | None, bad_step: str | None = None) -> bool:
        """Write a `Metrics` record, stamped so that no two calls of a run agree in both step and time.

        MLflow takes rows that agree in key, step, value and millisecond for one row: a second honest call within the
        same millisecond is moved to the next one. Otherwise as `append`.
        """
        with self._lock:
            if self._busy:
                self._interrupting.append(lambda: self.append_metrics(values, step, bad_step))
                return True
            self._busy = True
            try:
                ms = time.time_ns() // 1_000_000
                set_back = ms < self._clock_ms - CLOCK_STEP_MS
                self._clock_ms = ms
                if ms <= self._last_ms and not set_back:
                    ms = self._last_ms
                    if step in self._steps_in_ms:
                        ms += 1
                if ms != self._last_ms:
                    self._last_ms = ms
                    self._steps_in_ms.clear()
                self._steps_in_ms.add(step)
                return self._write(self._encode(Metrics(ms, step, values, bad_step)))
            finally:
                self._busy = False
                if self._interrupting:
                    self._catch_up()

    def _catch_up(self) -> None:
        """Write what signal handlers have said while this thread was writing."""
        late, self._interrupting = self._interrupting, []
        for call in late:
            call()

    def _write(self, payload: bytes) -> bool:
        if self._fd < 0:
            return False
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"record of {len(payload)} bytes exceeds the journal's limit of {MAX_PAYLOAD}")
        self._sequence += 1  # before the write: Ctrl-C right after it must not give a number twice
        head = FRAME.pack(SYNC, 1, 0, len(payload), self._sequence)
        crc = zlib.crc32(payload, zlib.crc32(head, self._nonce))
        frame = head + CRC.pack(crc) + payload
        try:
            written = os.write(self._fd, frame)
        except OSError as error:
            self._lose(error)
            return False
        if written != len(frame):
            self._cut_off(written)
            self._lose(OSError(f"only {written} of {len(frame)} bytes were written"))
            return False
        self._room -= written
        if self._room <= 0:
            self._roll()
        return True

    def close(self) -> None:
        """Close the segment. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                self.free_reserve()
        _open_journals.discard(self)

    def append_last(self, record: Record) -> bool:
        """As `append`, for what must be said at the end: on a full disk the room that was kept for it is given back."""
        if self._try(record):
            return True
        self.free_reserve()
        return self.append(record)

    def report_loss(self) -> None:
        """Write how many records were lost since the last report; if the disk refuses that too, it is for later."""
        with self._lock:
            count = self.lost - self._reported
            if count and self._try(Loss(now_ms(), count, self.first_error or "")):
                self._reported += count

    def _try(self, record: Record) -> bool:
        """As `append`, but a failure is no loss: it is neither counted nor does it use up a number."""
        with self._lock:
            before = self._sequence, self.lost
            if self.append(record):
                return True
            self._sequence, self.lost = before
            return False

    def free_reserve(self) -> None:
        """Give the file system back what was kept for the last records."""
        try:
            (self.folder / RESERVE).unlink(missing_ok=True)
        except OSError:
            pass

    def _keep_reserve(self) -> None:
        try:
            fd = os.open(self.folder / RESERVE, os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError:
            return
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except (OSError, AttributeError):  # AttributeError: macOS
            pass
        finally:
            os.close(fd)

    def _open_segment(self) -> None:
        self._number += 1
        path = self.folder / f"{self.attempt:06d}-{self._number:06d}.utj"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
        nonce = int.from_bytes(os.urandom(4), "little")
        header = HEADER.pack(MAGIC, VERSION, 0, nonce, self.attempt)
        header += CRC.pack(zlib.crc32(header))
        try:
            if os.write(fd, header * HEADER_COPIES) != HEADER_BYTES:
                raise OSError(f"{path}: no room for a header")
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._nonce, self._room = fd, nonce, self._segment_bytes - HEADER_BYTES

    def _roll(self) -> None:
        try:
            self._open_segment()
        except OSError as error:  # stay on the old segment: it grows beyond its limit, nothing is lost
            self._number -= 1
            self._room = self._segment_bytes
            self.first_error = self.first_error or str(error)

    def _lose(self, error: OSError) -> None:
        """A record could not be written: count it and go on; its number stays unused."""
        self.lost += 1
        self.first_error = self.first_error or str(error)

    def _cut_off(self, written: int) -> None:
        """Remove the beginning of a frame that was not written whole."""
        try:
            os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_END) - written)
        except OSError:
            pass  # the reader steps over it

    def _abandon(self) -> None:
        """In a forked child: never write, never hold a lock that a vanished thread holds."""
        self._lock = threading.RLock()
        self._busy = False
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

    A frame counts as a record only if its CRC is right, its sequence number belongs to the segment's attempt and is
    higher than the one before: what a broken file system repeats or brings back is damage, not a record.

    Attributes:
        position: Behind the last record handed out, and behind damage that was stepped over.
        skipped_bytes: Bytes that belonged to no valid frame.
        undecodable: Frames that were intact but could not be decoded (written by a newer version).
        unreadable: Names of segments without an intact header of this version; they stay where they are.
    """

    def __init__(self, folder: Path, start: Position = Position()) -> None:  # noqa: B008 -- immutable
        self.folder = folder
        self.position = start
        self.skipped_bytes = 0
        self.undecodable = 0
        self.unreadable: list[str] = []
        self._decode = msgspec.msgpack.Decoder(Record).decode
        self._headers: dict[str, tuple[int, int] | None] = {}
        self._sequence = 0

    def read(self, max_bytes: int = READ_BYTES, *, final: bool = False) -> list[Entry]:
        """Read what is there, about `max_bytes` of it.

        Args:
            max_bytes: Soft limit; a frame that is longer is read whole.
            final: The writer is gone: an incomplete tail of the last segment is damage, not a frame to wait for.

        Returns:
            Whole records in order; empty when there is none yet, with `final` when there is none left.
        """
        names = [path.name for path in segments(self.folder)]
        for index, name in enumerate(names):
            if name < self.position.segment:
                continue
            complete = final or index < len(names) - 1
            size, before = max_bytes, None
            while self.position != before:  # damage may be longer than a read
                before = self.position
                if entries := self._read_segment(name, size, complete=complete):
                    return entries
                size = max(size, min(2 * size, READ_BYTES))
        return []

    def _read_segment(self, name: str, max_bytes: int, *, complete: bool) -> list[Entry]:
        try:
            file = (self.folder / name).open("rb")
        except FileNotFoundError:
            return []  # the writer found no room for the header of a new segment, and has taken it back
        with file:
            header = self._header(name, file.read(HEADER_BYTES), complete=complete)
            if header is None:
                return []
            # The position moves into a segment with its first frame only: the new segment may still be taken back.
            offset = max(self.position.offset, HEADER_BYTES) if name == self.position.segment else HEADER_BYTES
            file.seek(offset)
            buffer = file.read(max(max_bytes, HEAD))
            if len(buffer) >= HEAD:
                need = HEAD + FRAME.unpack_from(buffer)[3]
                if len(buffer) < need <= MAX_PAYLOAD + HEAD:
                    buffer += file.read(need - len(buffer))
            at_end = offset + len(buffer) >= os.fstat(file.fileno()).st_size
        return self._frames(name, header, offset, buffer, complete=complete and at_end)

    def _frames(self, name: str, header: tuple[int, int], offset: int, buffer: bytes, *, complete: bool) -> list[Entry]:
        nonce, attempt = header
        entries: list[Entry] = []
        at, size = 0, len(buffer)
        unpack, crc32, decode = FRAME_HEAD.unpack_from, zlib.crc32, self._decode  # a million times each
        while at + HEAD <= size:
            sync, _type, _flags, length, sequence, crc = unpack(buffer, at)
            body = at + HEAD
            end = body + length
            if sync == SYNC and length <= MAX_PAYLOAD and sequence >> ATTEMPT_SHIFT == attempt:
                if end > size and not complete:
                    break  # not all there yet
                payload = buffer[body:end]
                if (
                    end <= size
                    and crc32(payload, crc32(buffer[at : at + FRAME.size], nonce)) == crc
                    and sequence > self._sequence
                ):
                    at = end
                    self._sequence = sequence
                    try:
                        record = decode(payload)
                    except (ValueError, TypeError, RecursionError):  # msgspec's own errors are ValueErrors
                        self.undecodable += 1
                        continue
                    entries.append(Entry(sequence, record, Position(name, offset + end)))
                    continue
            at = self._next_sync(buffer, at)
        if complete and at < size:
            self.skipped_bytes += size - at
            at = size
        if at:
            self.position = Position(name, offset + at)
        return entries

    def _next_sync(self, buffer: bytes, at: int) -> int:
        found = buffer.find(SYNC.to_bytes(2, "little"), at + 1)
        to = found if found >= 0 else len(buffer) - 1
        self.skipped_bytes += to - at
        return to

    def _header(self, name: str, content: bytes, *, complete: bool) -> tuple[int, int] | None:
        """Nonce and attempt of a segment; None if it cannot be read, or not yet."""
        if name in self._headers:
            return self._headers[name]
        if len(content) < HEADER_BYTES and not complete:
            return None
        found: tuple[int, int] | None = None
        size = HEADER.size + CRC.size
        for at in range(0, len(content) - size + 1, size):
            copy = content[at : at + HEADER.size]
            if CRC.unpack_from(content, at + HEADER.size)[0] == zlib.crc32(copy):
                magic, version, _, nonce, attempt = HEADER.unpack(copy)
                found = (nonce, attempt) if magic == MAGIC and version == VERSION else None
                break
        if found is None and content:
            self.unreadable.append(name)
        self._headers[name] = found
        return found


def now_ms() -> int:
    """Wall clock in milliseconds since the epoch, as every record carries it."""
    return time.time_ns() // 1_000_000
