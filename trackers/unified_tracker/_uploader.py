"""The uploader: one process for a run directory, holding its lock and keeping a lane alive for every backend.

Beside them a thread watches over linked files (`_guard`).

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

import msgspec
from filelock import FileLock, Timeout

from unified_tracker import _pending
from unified_tracker._backoff import Backoff
from unified_tracker._courier import CALL_S, LIMIT_VARIABLE
from unified_tracker._guard import Guard
from unified_tracker._lane import DONE, LINGER_S, PENDING
from unified_tracker._rundir import LaneState, RunDirectory

POLL_S: Final = 0.2
LOOK_S: Final = 1.0  # how often the watchdog looks
LIMIT_CAP_S: Final = 3600.0
NICE: Final = 10
CRASHES: Final = 8
LOCKED: Final = 5

_log = logging.getLogger("unified_tracker.uploader")


class LaneProcess:
    """A lane as the uploader sees it: started, ended when a call hangs, restarted with back-off.

    It ends by itself when its standard input does, so it does not outlive an uploader that was killed.
    """

    def __init__(self, directory: RunDirectory, backend: str, linger_s: float) -> None:
        self._directory, self._backend = directory, backend
        self._arguments = [sys.executable, "-m", "unified_tracker._lane", str(directory.path), backend, str(linger_s)]
        self._limit_s = float(os.environ.get(LIMIT_VARIABLE, CALL_S))
        self._backoff = Backoff.of_environment()
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = self._look_at = 0.0
        self._progress: tuple[int, int] | None = None
        self.code: int | None = None

    def look(self, now: float) -> None:
        """Start it, notice its end, start it again after a crash."""
        if self.code is not None:
            return
        if self._process is None:
            if now >= self._start_at:
                self._start(now)
            return
        code = self._process.poll()
        if code is None:
            if now >= self._look_at:
                self._look_at = now + LOOK_S
                self._end_if_it_hangs(now)
            return
        self._let_go()
        if code in {DONE, PENDING}:
            self.code = code
            return
        state = self._state()
        progress = (state.held, state.read) if state else None
        if progress != self._progress:
            self._progress = progress
            self._backoff.reset()
        self._start_at = now + self._backoff.next_s()
        _log.error("lane %s ended with code %d; it is started again", self._backend, code)
        if self._backoff.failures >= CRASHES and not self._directory.writer_alive():
            self.code = PENDING

    def _start(self, now: float) -> None:
        environment = {**os.environ, LIMIT_VARIABLE: str(self._limit_s)}
        try:
            self._process = subprocess.Popen(  # in a session of its own, to be ended with all that its SDK has started
                self._arguments, stdin=subprocess.PIPE, env=environment, start_new_session=True
            )
        except OSError:  # no memory, no process numbers: a busy machine
            _log.exception("lane %s cannot be started", self._backend)
            self._start_at = now + self._backoff.next_s()

    def _end_if_it_hangs(self, now: float) -> None:
        """The watchdog: end a lane whose call to the backend should long have been over."""
        state = self._state()
        if self._process is None or state is None or state.pid != self._process.pid or not 0 < state.call_until < now:
            return
        _log.error("lane %s hangs in a call to its backend; it is ended", self._backend)
        self._kill(self._process)
        self._limit_s = min(2 * self._limit_s, LIMIT_CAP_S)  # perhaps the backend was only slow

    def _state(self) -> LaneState | None:
        try:
            return self._directory.lane_state(self._backend)
        except (OSError, msgspec.MsgspecError):
            return None

    def _let_go(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def end(self) -> None:
        """End it, hard: delivery can be interrupted at any point."""
        if self._process is not None:
            self._kill(self._process)
            self._process.wait()
            self._let_go()

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()


def deliver(directory: RunDirectory, *, linger_s: float, wait_s: float = 0.0, nice: int = 0) -> int:
    """Deliver a run directory until it is done or every lane has given up for now.

    Args:
        directory: What to deliver.
        linger_s: How long a lane goes on without success once the training is gone.
        wait_s: How long to wait for another uploader of the same directory to end.
        nice: How far the lanes stand back behind the training. The guard does not (on Linux, where every thread has a
            priority of its own): a training may be waiting for it.

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
    guard = Guard(directory)
    guard.start()
    if nice and hasattr(os, "nice"):
        os.nice(nice)
    try:
        while any(lane.code is None for lane in lanes):
            for lane in lanes:
                lane.look(time.monotonic())
            time.sleep(POLL_S)
    finally:
        for lane in lanes:
            lane.end()
        guard.end()
        if all(lane.code == DONE for lane in lanes):
            _pending.forget(directory.path)
        lock.release()
    return max((lane.code or DONE for lane in lanes), default=DONE)


def main(arguments: Sequence[str]) -> int:
    """Deliver a run directory. Arguments: its path, seconds to wait for another uploader (default 0)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PENDING))
    linger = float(os.environ.get("UNIFIED_TRACKER_LINGER_S", LINGER_S))
    wait_s = float(arguments[1]) if len(arguments) > 1 else 0.0
    return deliver(RunDirectory(Path(arguments[0])), linger_s=linger, wait_s=wait_s, nice=NICE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
