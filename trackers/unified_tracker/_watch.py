"""The watch: what the training process sees of delivery. Reads the lanes' state files, talks to no backend."""

from __future__ import annotations

import time
from typing import Final

from unified_tracker._console import say
from unified_tracker._launcher import UploaderProcess
from unified_tracker._rundir import LaneState, RunDirectory

RESTARTS: Final = 5


class DeliveryWatch:
    """Passes on what lanes have to say, restarts an uploader that died, waits for the end of delivery."""

    def __init__(self, directory: RunDirectory, backends: list[str], uploader: UploaderProcess, first: int) -> None:
        """Set what is watched.

        Args:
            directory: The run directory.
            backends: Names of its lanes.
            uploader: The process that delivers it.
            first: Sequence number at which this attempt begins: states of earlier ones are not about it.
        """
        self._first = first
        self._directory, self._backends, self._uploader = directory, backends, uploader
        self._stamps: dict[str, int] = {}
        self._said: set[str] = set()
        self._done: set[str] = set()
        self._restarts = 0

    def look(self) -> None:
        """One look: a `stat` for each backend, a read where something changed. Never waits."""
        for backend in self._backends:
            path = self._directory.lanes / f"{backend}.json"
            try:
                stamp = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            if self._stamps.get(backend) != stamp:
                self._stamps[backend] = stamp
                state = self._directory.lane_state(backend)
                if state is not None:
                    self._pass_on(state)
        if self._restarts < RESTARTS and self._uploader.ended() and not self._done >= set(self._backends):
            self._restarts += 1
            self._uploader.start()

    def wait(self, last: int, timeout_s: float) -> bool:
        """Wait until every lane has closed the run, or the time is up; then say how it stands.

        Returns:
            True when every backend holds everything up to `last`.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not self._all_done(last):
            self.look()
            time.sleep(0.05)
        self.look()
        complete = True
        for backend in self._backends:
            state = self._directory.lane_state(backend)
            if state is not None and state.done and state.held >= last:
                say(summary(state))
            else:
                complete = False
                trouble = f" ({state.error})" if state is not None and state.error else ""
                say(
                    f"{backend}: not everything is delivered yet{trouble}; the uploader goes on. "
                    f"If this machine stops: unified-tracker sync {self._directory.path}"
                )
        self._uploader.forget()
        return complete

    def _all_done(self, last: int) -> bool:
        states = [self._directory.lane_state(backend) for backend in self._backends]
        return all(state is not None and state.done and state.held >= last for state in states)

    def _pass_on(self, state: LaneState) -> None:
        if state.done and state.held >= self._first:
            self._done.add(state.backend)
        lines = [f"{state.backend}: {note}" for note in state.notes]
        if state.address is not None:
            lines.insert(0, f"{state.backend}: run {state.address.id} at {state.address.url}")
        if state.error is not None:
            lines.append(f"{state.backend}: {state.error}; the data waits in {self._directory.path}")
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                say(line)


def summary(state: LaneState) -> str:
    """One line about a run that a backend holds completely."""
    aside = f", {state.set_aside} set aside" if state.set_aside else ""
    where = f" at {state.address.url}" if state.address else ""
    look = f" (to look: {state.address.look})" if state.address and state.address.look else ""
    return f"{state.backend}: everything delivered, {state.records} records{aside}{where}{look}"
