"""The uploader: one process for a run directory, holding its lock and keeping a lane alive for every backend.

It imports no SDK. `unified-tracker sync` is the same code in the foreground.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from unified_tracker import _pending
from unified_tracker._backoff import Backoff
from unified_tracker._lane import DONE, LINGER_S, PENDING
from unified_tracker._rundir import RunDirectory

POLL_S: Final = 0.2
NICE: Final = 10
CRASHES: Final = 8
LOCKED: Final = 5


class LaneProcess:
    """A lane as the uploader sees it: started, restarted with back-off when it crashes."""

    def __init__(self, directory: RunDirectory, backend: str, linger_s: float) -> None:
        self._arguments = [sys.executable, "-m", "unified_tracker._lane", str(directory.path), backend, str(linger_s)]
        self._backoff = Backoff()
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0
        self.code: int | None = None

    def look(self, now: float) -> None:
        """Start it, notice its end, start it again after a crash."""
        if self.code is not None:
            return
        if self._process is None:
            if now >= self._start_at:
                self._process = subprocess.Popen(self._arguments, stdin=subprocess.DEVNULL)
            return
        code = self._process.poll()
        if code is None:
            return
        self._process = None
        if code in {DONE, PENDING}:
            self.code = code
        else:
            self._start_at = now + self._backoff.next_s()
            if self._backoff.failures >= CRASHES:
                self.code = PENDING

    def end(self) -> None:
        """End it, hard: delivery can be interrupted at any point."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def deliver(directory: RunDirectory, *, linger_s: float, wait_s: float = 0.0) -> int:
    """Deliver a run directory until it is done or every lane has given up for now.

    Args:
        directory: What to deliver.
        linger_s: How long a lane goes on without success once the training is gone.
        wait_s: How long to wait for another uploader of the same directory to end.

    Returns:
        0 done, 2 something is pending, 5 another uploader has the directory.
    """
    try:
        lock = FileLock(directory.uploader_lock)
        lock.acquire(timeout=wait_s)
    except Timeout:
        return LOCKED
    _pending.remember(directory.path)
    lanes = [LaneProcess(directory, name, linger_s) for name in directory.info().backends]
    try:
        while any(lane.code is None for lane in lanes):
            for lane in lanes:
                lane.look(time.monotonic())
            time.sleep(POLL_S)
    finally:
        for lane in lanes:
            lane.end()
        if all(lane.code == DONE for lane in lanes):
            _pending.forget(directory.path)
        lock.release()
    return max((lane.code or DONE for lane in lanes), default=DONE)


def main(arguments: Sequence[str]) -> int:
    """Deliver a run directory. Arguments: its path, seconds to wait for another uploader (default 0)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PENDING))
    if hasattr(os, "nice"):
        os.nice(NICE)
    linger = float(os.environ.get("UNIFIED_TRACKER_LINGER_S", LINGER_S))
    wait_s = float(arguments[1]) if len(arguments) > 1 else 0.0
    return deliver(RunDirectory(Path(arguments[0])), linger_s=linger, wait_s=wait_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
