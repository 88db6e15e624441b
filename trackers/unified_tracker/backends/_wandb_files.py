"""Plain files of a run: copied to where wandb uploads from, and waited for where they are big."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from unified_tracker._backoff import Clock
from unified_tracker._errors import RejectedError, TransientError
from unified_tracker.backends import _wandb_values as values
from unified_tracker.backends._wandb_receipts import ReadBack, Receipts

FILE_S: Final = 30.0
FILE_POLL_S: Final = 0.5
BIG: Final = 1 << 26
FILE_AGAIN_S: Final = 600.0


class RunFiles:
    """The plain files that this process gives to W&B."""

    def __init__(self, run: Any, receipts: Receipts, server: ReadBack | None, clock: Clock) -> None:
        self._run, self._receipts, self._server, self._clock = run, receipts, server, clock
        self._saving: tuple[int, set[str], float] | None = None

    def save(self, sequence: int, files: Mapping[str, Path]) -> None:
        """Give files to W&B; online, wait for the big ones: `finish` has a time limit."""
        now = self._clock.monotonic()
        if self._saving is None or self._saving[0] != sequence or now >= self._saving[2]:
            targets = [self._save_one(path, source) for path, source in files.items()]
            sizes = {target.relative_to(self._run.dir).as_posix(): target.stat().st_size for target in targets}
            for name, size in sizes.items():
                self._receipts.file(name, size)
            big = {name for name, size in sizes.items() if size >= BIG}
            self._saving = sequence, big, now + FILE_AGAIN_S
        if self._server is not None:
            self._await(self._server, self._saving[1])
        self._saving = None

    def _await(self, server: ReadBack, names: set[str]) -> None:
        ends_at = self._clock.monotonic() + FILE_S
        while pending := names & self._receipts.pending_files():
            self._receipts.files_there(server.sizes(pending))
            if self._clock.monotonic() >= ends_at:
                raise TransientError(f"W&B is still taking file {min(pending)!r}")
            self._clock.sleep(FILE_POLL_S)

    def _save_one(self, path: str, source: Path) -> Path:
        """Copy a file to where wandb uploads from, below its own name."""
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            raise RejectedError(f"{path!r} is no path inside the run's files")
        if values.RESERVED_FILES.fullmatch(path):
            parts = PurePosixPath("files") / parts
        target = Path(self._run.dir) / parts
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)  # the lane has made the staged file one that nobody writes to
        except OSError:
            shutil.copyfile(source, target)
        if not self._run.save(glob.escape(str(target)), base_path=glob.escape(self._run.dir), policy="now"):
            raise RejectedError(f"W&B has not taken the file {path!r}")
        return target
