"""The guard: makes hard-linked files private before somebody writes over them.

A link that a training has staged shares its bytes with the framework's own file until somebody copies them. The
uploader does, within a moment of the link's appearance, and asks the kernel for a read lease meanwhile: a process that
opens the file for writing then waits until the copy is complete, whatever library opens it. Where there are no leases
(macOS, most network file systems, a file of another user), size and modification time before and after the copy tell
whether it is good.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from unified_tracker._rundir import RunDirectory

try:
    import fcntl
except ImportError:  # Windows: `start_run` says that it is not supported there
    fcntl = None  # type: ignore[assignment]

LINKS: Final = "links"
LOOK_S: Final = 0.05
LOOK_AGAIN_S: Final = 1.0  # time stamps of a folder may be this coarse
HOLD_BACK_S: Final = 10.0  # how long a training may be kept waiting; the kernel would allow 45 s
CHUNK: Final = 8 << 20
SMALL: Final = 1 << 20  # copied in less time than it takes to think about it
ROOM_SHARE: Final = 0.05
ROOM_BYTES: Final = 2 << 30


class Guard:
    """Watches the links of one run directory from a thread of the uploader.

    Holds a lock that tells the training that it is there. Crash: links that are not private yet are looked at by the
    next guard; a half-written copy has a name of its own and is removed with the files of its attempt.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._folder = directory.path / LINKS
        self._private: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def end(self) -> None:
        """Stop watching; what is being copied is copied first, for at most ten seconds."""
        self._ended.set()
        self._thread.join(HOLD_BACK_S)

    def _watch(self) -> None:
        with self._directory.guarding():
            stamp, looked = -1, 0.0
            while not self._ended.is_set():
                with contextlib.suppress(OSError):  # no link yet; a disk that refuses: again in a moment
                    now = time.monotonic()
                    found = self._folder.stat().st_mtime_ns
                    if found != stamp or now - looked > LOOK_AGAIN_S:
                        stamp, looked = found, now
                        self._look()
                self._ended.wait(LOOK_S)

    def _look(self) -> None:
        with os.scandir(self._folder) as found:
            new = [entry.path for entry in found if entry.name not in self._private and not entry.name.startswith(".")]
        for path in sorted(new):
            if self._ended.is_set():
                return
            if make_private(Path(path)):
                self._private.add(os.path.basename(path))


def make_private(path: Path, *, hold_back: bool = True, patience_s: float = 600.0) -> bool:
    """Turn a hard link into a file of its own: from here on nobody can write over its bytes in place.

    Args:
        path: The link. Its other names are left alone.
        hold_back: Ask the kernel to let writers wait meanwhile. Not for a process that is itself about to write.
        patience_s: How long to wait for another process that does the same.

    Returns:
        True if the file is private now, or gone. False if it is not, and why does not matter to the caller: it was
        written to meanwhile, or the disk has no room. It is left as it was.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    copy = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if os.fstat(fd).st_nlink < 2:
            return True
        _take_turn(fd, patience_s)
        before = os.fstat(fd)
        if path.stat().st_ino != before.st_ino:  # somebody else was faster
            return True
        if not room_for(path.parent, before.st_size):
            return False
        leased = hold_back and _lease(fd)
        if not _copied(fd, copy, before.st_size, leased):
            return False
        os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))  # by which `changed` recognises the bytes
        after = os.fstat(fd)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return False
        if path.exists():  # not delivered and removed meanwhile
            copy.replace(path)
        return True
    except FileNotFoundError:
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            copy.unlink()
        os.close(fd)  # gives lease and turn back


def room_for(folder: Path, size: int) -> bool:
    """False if as many bytes more would leave less than 2 GiB (5 % of a small disk) to everybody else.

    A small file is always taken: a configuration is worth more than the room it needs.
    """
    if size <= SMALL:
        return True
    disk = shutil.disk_usage(folder)
    return disk.free - size >= min(ROOM_SHARE * disk.total, ROOM_BYTES)


def _take_turn(fd: int, patience_s: float) -> None:
    """Wait for another process that copies the same file; go on alone where the file system knows no such lock."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # noqa: PERF203 -- it waits
            time.sleep(0.005)
        except OSError:
            return
        else:
            return


def _lease(fd: int) -> bool:
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored by default; SIGIO would end the process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:  # somebody writes to it just now, it is not ours, or the file system has none
        return False
    return True


def _copied(fd: int, target: Path, size: int, leased: bool) -> bool:
    """Copy in pieces; give up when a writer has been waiting for the lease for too long."""
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        done, waits_since = 0, 0.0
        while done < size:
            count = _copy_piece(fd, out, done)
            if not count:
                return False  # it has become shorter
            done += count
            if leased and fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                waits_since = waits_since or time.monotonic()
                if time.monotonic() - waits_since > HOLD_BACK_S:
                    return False
        return True
    finally:
        os.close(out)


def _copy_piece(source: int, target: int, offset: int) -> int:
    if sys.platform == "linux":
        return os.sendfile(target, source, offset, CHUNK)
    return os.write(target, os.pread(source, CHUNK, offset))
