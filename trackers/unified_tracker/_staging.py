"""Staging: taking responsibility for the bytes of a file at the moment it is logged.

A hard link costs microseconds and survives rotation, renaming and deletion, but not being written over in place (same
inode). A copy survives everything. Which one is the caller's decision; what is delivered is checked against size and
modification time in either case (`changed`).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from pathlib import Path
from typing import Final, Literal

from unified_tracker._values import as_text
from unified_tracker.records import StagedFile

FOLDER: Final = "files"
Hold = Literal["link", "copy"]


class Staging:
    """The `files` folder of a run directory."""

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._run_dir = run_dir
        self._attempt = attempt
        self._numbers = itertools.count(1)

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
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                temporary.write_bytes(content)
                temporary.replace(target)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        return self._staged(target.name, target)

    def hold(self, source: Path, name: str, how: Hold) -> StagedFile:
        """Stage one file.

        Args:
            source: The file; it may change or vanish afterwards.
            name: Its name inside the artifact, POSIX, relative.
            how: "link" for a file that nobody writes over in place, else "copy". A link that the file system refuses
                becomes a copy.

        Raises:
            OSError: The file cannot be read, or the disk is full. Nothing stays behind.
        """
        target = self._target(name)
        if how == "link":
            try:
                os.link(source, target)
                return self._staged(name, target)
            except OSError:
                pass  # another file system, or links are forbidden
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
        held: list[StagedFile] = []
        try:
            for path in found:
                held.append(self.hold(path, path.relative_to(source).as_posix(), how))  # noqa: PERF401 -- undone below
        except OSError:
            for staged in held:
                locate(self._run_dir, staged).unlink(missing_ok=True)
            raise
        return tuple(held)

    def _target(self, name: str) -> Path:
        folder = self._run_dir / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        base = re.sub(r"[^A-Za-z0-9_.\-]", "_", name.rpartition("/")[2])[-80:] or "file"
        return folder / f"{self._attempt:03d}-{next(self._numbers):06d}-{base}"

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
