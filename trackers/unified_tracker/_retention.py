"""Retention: a staged file is removed when every backend of the run holds it.

A checkpoint that the framework has rotated away would otherwise fill the disk for as long as the run directory stands.
The journal itself is kept: it is small, and a run can be looked at and resumed with it.
"""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import Final

from unified_tracker._journal import ATTEMPT_SHIFT
from unified_tracker._rundir import LaneState, RunDirectory
from unified_tracker._staging import FOLDERS, locate
from unified_tracker.records import Artifact, Entry, Media

ATTEMPT: Final = re.compile(r"(\d+)-\d+-")


class Retention:
    """The files that one lane has delivered, until all lanes have."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._folders = [directory.path / name for name in FOLDERS]
        self._waiting: deque[tuple[int, Path]] = deque()

    def delivered(self, entry: Entry) -> None:
        """Remember the files of a record that has been handed to the backend."""
        record = entry.record
        files = record.files if isinstance(record, Artifact) else (record.file,) if isinstance(record, Media) else ()
        for file in files:
            path = locate(self._directory.path, file)
            if path.parent in self._folders:  # never a file of the user's that is delivered in place
                self._waiting.append((entry.sequence, path))

    def release(self) -> None:
        """Remove what every backend holds. Call it when the lane's own state has been written."""
        if not self._waiting:
            return
        held = self._held_by_all()
        while self._waiting and self._waiting[0][0] <= held:
            self._waiting.popleft()[1].unlink(missing_ok=True)

    def sweep(self) -> None:
        """At the end of an attempt that every backend holds: remove what lanes that died had left."""
        held = self._held_by_all()
        if not held or not all(state is not None and state.done for state in self._states()):
            return
        for path in (path for folder in self._folders if folder.is_dir() for path in folder.iterdir()):
            found = ATTEMPT.match(path.name.removeprefix("."))
            if found and int(found[1]) <= held >> ATTEMPT_SHIFT:
                path.unlink(missing_ok=True)

    def _held_by_all(self) -> int:
        """Up to which record no backend will ask for files again."""
        return min((0 if state is None or state.rebuilds else state.held for state in self._states()), default=0)

    def _states(self) -> list[LaneState | None]:
        return [self._directory.lane_state(backend) for backend in self._directory.info().backends]
