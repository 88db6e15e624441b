"""The run directory: what is in it, who may write to it, how it is found.

::

    <dir>/unified-tracker/<run id>/
        run.json                who the run is (`RunInfo`)
        writer.lock             held by the process that trains
        journal/*.utj           the journal
        files/, links/, shared/ staged files; links are made private by the guard, shared ones are not
        guard.lock              held by the uploader while it does
        lanes/<backend>.db      acknowledged position, backend ids, records set aside
        lanes/<backend>.json    state for people and for the training process (`LaneState`)
        uploader.lock, uploader.log
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from unified_tracker._tracker import Address, RunInfo

try:
    import fcntl
except ImportError:  # Windows: `start_run` says that it is not supported there
    fcntl = None  # type: ignore[assignment]

PARENT: Final = "unified-tracker"
ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_run_id() -> str:
    """Eight random characters, acceptable to every backend as part of a name."""
    return "".join(ALPHABET[byte % len(ALPHABET)] for byte in os.urandom(8))


class LaneState(msgspec.Struct, frozen=True):
    """What one lane says about itself.

    Attributes:
        held: Sequence number up to which the backend holds everything.
        read: Sequence number up to which records were handed to the tracker.
        records: Records handed over.
        set_aside: Records that the backend refuses.
        done: The run is closed in the backend.
        error: The trouble that delivery has just now; None when it flows.
        notes: Sentences for the user, oldest first; each is shown once.
        lost: Records that were logged and are nowhere: the disk refused them, or the journal was damaged.
        call_until: When the call to the backend that goes on now must be over, by the monotonic clock; 0 for none.
        rebuilds: The staged files are needed as long as the run: what the backend holds is written anew each time, or
            refers to them.
    """

    backend: str
    pid: int
    address: Address | None = None
    held: int = 0
    read: int = 0
    records: int = 0
    set_aside: int = 0
    done: bool = False
    error: str | None = None
    notes: tuple[str, ...] = ()
    lost: int = 0
    call_until: float = 0.0
    rebuilds: bool = False


class RunDirectory:
    """Paths and locks of one run directory. Creating the object touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal"
        self.lanes = path / "lanes"
        self.uploader_lock = path / "uploader.lock"
        self.uploader_log = path / "uploader.log"
        self._lock_fd = -1

    def create(self, info: RunInfo) -> None:
        """Make the folders and write `run.json`. An existing run keeps its identity; only its backends may grow.

        Raises:
            OSError: The folder cannot be written.
        """
        for folder in (self.path, self.journal, self.lanes):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(self.path / "run.json", info)

    def info(self) -> RunInfo:
        """Read `run.json`.

        Raises:
            FileNotFoundError: This is no run directory.
        """
        return msgspec.json.decode((self.path / "run.json").read_bytes(), type=RunInfo)

    def lane_state(self, backend: str) -> LaneState | None:
        """The latest state that a lane has written; None before its first."""
        try:
            return msgspec.json.decode((self.lanes / f"{backend}.json").read_bytes(), type=LaneState)
        except FileNotFoundError:
            return None

    def lock_writer(self) -> bool:
        """Become the process that trains this run; False if another one is.

        A POSIX record lock: unlike `flock` it is not inherited by forked DataLoader workers, so it is free as soon as
        the training process is dead.

        Raises:
            OSError: The file cannot be made, or its file system has no locks.
        """
        fd = os.open(self.path / "writer.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        for _ in range(20):  # the uploader holds the lock for an instant when it looks
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in {errno.EACCES, errno.EAGAIN}:
                    os.close(fd)
                    why = f"its file system has no locks ({error.strerror}): choose a local disk"
                    raise OSError(error.errno, why) from error
                time.sleep(0.005)
                continue
            self._lock_fd = fd
            return True
        os.close(fd)
        return False

    def unlock_writer(self) -> None:
        """Give the writer's lock back."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def writer_alive(self) -> bool:
        """True while a process trains this run. Never call it in that process: closing a descriptor frees the lock."""
        return _is_held(self.path / "writer.lock")

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Say for a while that links of this directory are made private as they appear; waits for a guard before."""
        fd = os.open(self.path / "guard.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            with contextlib.suppress(OSError):  # no locks here: nobody relies on the guard then
                fcntl.lockf(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def guarded(self) -> bool:
        """True while a guard is there. Never call it in the guard's process, as with `writer_alive`."""
        return _is_held(self.path / "guard.lock")


def _is_held(lock: Path) -> bool:
    """True if another process holds a POSIX record lock."""
    try:
        fd = os.open(lock, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def write_json(path: Path, content: msgspec.Struct) -> None:
    """As `write_bytes`, for JSON."""
    write_bytes(path, msgspec.json.encode(content))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old or the new content, never half of it.

    Raises:
        OSError: The disk does not take it; nothing stays behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def find_runs(folder: Path) -> Iterator[RunDirectory]:
    """Every run directory at or below a folder, oldest first; folders that cannot be read are passed over."""
    found: list[tuple[int, Path]] = []
    for root, folders, files in os.walk(folder):
        here = Path(root)
        if "run.json" in files and "journal" in folders:
            folders.clear()
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append((RunDirectory(here).info().created_ms, here))
    for _, path in sorted(found):
        yield RunDirectory(path)
