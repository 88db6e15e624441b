"""Staging: taking responsibility for the bytes of a file at the moment it is logged.

Three ways, the first that is possible:

* a **clone**, where the file system shares blocks between files (Btrfs, XFS): costs nothing, survives everything;
* a **hard link**: costs microseconds, survives rotation, renaming and deletion, but not being written over in place
  (same inode), until the guard in the uploader has made it private, some 50 ms and one copy later; the kernel lets
  whoever opens the file for writing wait meanwhile. Adapters, which know what is about to be written over, make sure
  of it (`before_rewrite`);
* a **copy**, which survives everything and blocks as long as it takes.

A name that is known to be written over is linked only while a guard is there, and copied if it is small. The images of
a data set may be shared: linked, and left alone by the guard, since a copy of them would fill the disk. What is
delivered is checked against size and modification time in every case (`changed`): bytes that were written over in the
moment before the guard had them are told, never published.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from unified_tracker._guard import LINKS, SMALL, make_private, room_for
from unified_tracker._rundir import RunDirectory, write_bytes
from unified_tracker._values import as_text
from unified_tracker.records import StagedFile

try:
    import fcntl
except ImportError:  # Windows: `start_run` says that it is not supported there
    fcntl = None  # type: ignore[assignment]

FOLDER: Final = "files"
SHARED: Final = "shared"
FOLDERS: Final = (FOLDER, LINKS, SHARED)
FICLONE: Final = 0x40049409
MARK_NS: Final = 617
RECENT_S: Final = 2.0
PATIENCE_S: Final = 10.0
Hold = Literal["link", "guarded", "shared", "copy"]


class Staging:
    """The `files` and `links` folders of a run directory."""

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._run_dir = run_dir
        self._attempt = attempt
        self._numbers = itertools.count(1)
        self._clones = sys.platform == "linux"
        self._linked: dict[str, list[Path]] = {}

    def write(self, name: str, content: bytes) -> StagedFile:
        """Stage bytes that exist in memory only."""
        target = self._target(name)
        try:
            target.write_bytes(content)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        return self._staged(name, target)

    def keep(self, path: str, content: bytes) -> StagedFile:
        """Write a file that stays in the run directory after delivery.

        Args:
            path: Below the run directory, POSIX. A file that is there with the same size is taken as it is: such names
                hold a digest of the content.
            content: The bytes.
        """
        target = self._run_dir / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not target.is_file() or target.stat().st_size != len(content):
            write_bytes(target, content)
        return self._staged(target.name, target)

    def hold(self, source: Path, name: str, how: Hold) -> StagedFile:
        """Stage one file.

        Args:
            source: The file; it may change or vanish afterwards.
            name: Its name inside the artifact, POSIX, relative.
            how: "link" for a file that nobody is expected to write over in place, "guarded" for one that will be,
                "shared" for a large data set's: a link that stays one until it is delivered; else "copy". A link that
                the file system refuses becomes a copy.

        Raises:
            OSError: The file cannot be read, or a copy would leave too little room on the disk. Nothing stays behind.
        """
        if self._clones:
            target = self._target(name)
            if self._clone(source, target):
                return self._staged(name, target)
        size = source.stat().st_size
        if how == "shared":
            target = self._target(name, SHARED)
            try:
                os.link(source.resolve(), target)  # of a symbolic link, what it means
            except OSError:
                pass
            else:
                return self._staged(name, target)
        if how == "link" or (how == "guarded" and self._may_link(source, size)):
            target = self._target(name, LINKS)
            try:
                os.link(source, target)
            except OSError:
                pass  # another file system, or links are forbidden
            else:
                _mark(target)
                self._linked.setdefault(os.path.abspath(source), []).append(target)
                return self._staged(name, target)
        target = self._target(name)
        if not room_for(target.parent, size):
            why = (
                f"a copy of {source} ({size >> 20} MiB) would leave less than 2 GiB free on the disk of {self._run_dir}"
            )
            raise OSError(errno.ENOSPC, why)
        try:
            shutil.copyfile(source, target)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        return self._staged(name, target)

    def hold_tree(self, source: Path, how: Hold) -> tuple[StagedFile, ...]:
        """Stage a file, or every regular file below a folder; symbolic links are followed to files only."""
        if source.is_file():
            return (self.hold(source, source.name, how),)
        if not source.is_dir():
            raise FileNotFoundError(f"{source} is neither a file nor a folder")
        found = sorted(path for path in source.rglob("*") if path.is_file())
        return self.hold_all(((path.relative_to(source).as_posix(), path) for path in found), how)

    def hold_all(self, files: Iterable[tuple[str, Path]], how: Hold) -> tuple[StagedFile, ...]:
        """Stage files, each under its name in the artifact: all of them, or none."""
        held: list[StagedFile] = []
        try:
            for name, path in files:
                held.append(self.hold(path, name, how))
        except OSError:
            for staged in held:
                locate(self._run_dir, staged).unlink(missing_ok=True)
            raise
        return tuple(held)

    def before_rewrite(self, path: Path) -> None:
        """Make private what was linked from a file, or below a folder, that is about to be written over.

        Blocking: microseconds, since the guard has usually done it; else one copy, at most ten seconds behind the
        guard's own.
        """
        about = os.path.abspath(path)
        for source, targets in list(self._linked.items()):
            if source == about or source.startswith(about + os.sep):
                for target in targets:
                    make_private(target, hold_back=False, patience_s=PATIENCE_S)
                del self._linked[source]

    def _may_link(self, source: Path, size: int) -> bool:
        """A guard is there to make it private, or there is no room for anything else."""
        if size <= SMALL:
            return False
        return RunDirectory(self._run_dir).guarded() or not room_for(self._run_dir, size)

    def _clone(self, source: Path, target: Path) -> bool:
        """FICLONE: two files that share their blocks until one of them is written to."""
        with source.open("rb") as old, target.open("xb") as new:
            try:
                fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
            except OSError as error:
                target.unlink()
                # A source on another file system says nothing about the next one.
                self._clones = error.errno in {errno.EXDEV, errno.EINVAL}
                return False
        return True

    def _target(self, name: str, folder: str = FOLDER) -> Path:
        parent = self._run_dir / folder
        parent.mkdir(mode=0o700, exist_ok=True)
        base = re.sub(r"[^A-Za-z0-9_.\-]", "_", name.rpartition("/")[2])[-80:] or "file"
        return parent / f"{self._attempt:03d}-{next(self._numbers):06d}-{base}"

    def _staged(self, name: str, target: Path) -> StagedFile:
        stat = target.stat()
        return StagedFile(as_text(name), target.relative_to(self._run_dir).as_posix(), stat.st_size, stat.st_mtime_ns)


def locate(run_dir: Path, file: StagedFile) -> Path:
    """Where the bytes of a staged file are."""
    return run_dir / file.staged


def changed(run_dir: Path, file: StagedFile) -> str | None:
    """Why the bytes of a staged file are not those that were logged; None if they are."""
    try:
        stat = locate(run_dir, file).stat()
    except FileNotFoundError:
        return f"{file.path} vanished from {locate(run_dir, file)}"
    if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
        return f"{file.path} was written over in place after it had been logged"
    return None


def _mark(path: Path) -> None:
    """Move the time of a file that was written just now by less than a microsecond.

    File systems tick in milliseconds: a file of the same size, written over within the same tick, would have the time
    of the bytes before it. After this it has not. The same file gets the same mark again.
    """
    stat = path.stat()
    if time.time() - stat.st_mtime < RECENT_S:
        try:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns // 1000 * 1000 + MARK_NS))
        except OSError:
            pass  # somebody else's file
