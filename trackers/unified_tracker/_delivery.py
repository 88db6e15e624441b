"""How far runs are delivered, and delivering them in the foreground: what the commands `runs` and `sync` stand on."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final

import msgspec

from unified_tracker._journal import JournalReader
from unified_tracker._launcher import QUIET
from unified_tracker._ledger import Ledger
from unified_tracker._rundir import RunDirectory, find_runs
from unified_tracker._uploader import LOCKED
from unified_tracker.records import Loss

LINGER_VARIABLE: Final = "UNIFIED_TRACKER_LINGER_S"
LINGER_S: Final = 60.0  # somebody waits in front of the terminal: the uploader in the background has ten minutes
LOOK_S: Final = 0.2


class Outcome(Enum):
    """How delivery stands, worst last; `exit_code` is what `sync` ends with."""

    DELIVERED = "delivered"
    INCOMPLETE = "delivered, but not all of it"
    BUSY = "being delivered by another process"
    PENDING = "pending"
    NOTHING = "nothing found"

    @property
    def exit_code(self) -> int:
        """0 delivered, 2 pending, 3 set aside or lost, 4 nothing found, 5 busy."""
        codes = {"DELIVERED": 0, "PENDING": 2, "INCOMPLETE": 3, "NOTHING": 4, "BUSY": 5}
        return codes[self.name]


class LaneReport(msgspec.Struct, frozen=True):
    """One backend of a run.

    Attributes:
        state: "delivered", "pending", "set aside" (delivered, but records were refused), or "recording" (the training
            goes on).
        records: Records handed to the backend.
        set_aside: Records that it refused.
        address: Where the run stands there; None before the first contact.
        look: The command that shows it; "" when the address alone does.
        error: The trouble that delivery had last.
    """

    backend: str
    state: str
    records: int
    set_aside: int
    address: str | None
    look: str
    error: str | None


class Delivery:
    """One run directory, seen from outside the training."""

    def __init__(self, directory: RunDirectory) -> None:
        """Read who the run is.

        Raises:
            OSError, msgspec.MsgspecError: This is no run directory.
        """
        self.directory = directory
        self.info = directory.info()
        self._busy = False

    def lanes(self) -> list[LaneReport]:
        """Every backend of the run, in the order in which the run names them."""
        recording = self.directory.writer_alive()
        return [self._lane(backend, recording=recording) for backend in self.info.backends]

    def outcome(self) -> Outcome:
        """How delivery stands now. Reads the journal of a delivered run, for what it has lost."""
        states = {lane.state for lane in self.lanes()}
        if states & {"pending", "recording"}:
            return Outcome.BUSY if self._busy else Outcome.PENDING
        return Outcome.INCOMPLETE if "set aside" in states or self.lost() else Outcome.DELIVERED

    def lost(self) -> int:
        """Records that could not be written to the journal (disk full), and so are nowhere."""
        reader = JournalReader(self.directory.journal)
        count = 0
        while entries := reader.read(final=True):
            count += sum(entry.record.count for entry in entries if isinstance(entry.record, Loss))
        return count

    def deliver(self, progress: Callable[[], None]) -> None:
        """Run the uploader until it is done, gives up for now, or finds another one at work.

        It is the program that the training starts, in its own process: in the working folder of the training, since
        backends' relative defaults are meant from there, with what lanes say in the run's `uploader.log`.
        """
        cwd = self.info.cwd if Path(self.info.cwd).is_dir() else str(self.directory.path)
        environment = {LINGER_VARIABLE: str(LINGER_S), **os.environ, **QUIET}
        command = [sys.executable, "-m", "unified_tracker._uploader", str(self.directory.path.absolute())]
        with self.directory.uploader_log.open("ab") as log:
            uploader = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env=environment
            )
        try:
            while uploader.poll() is None:
                progress()
                time.sleep(LOOK_S)
        except BaseException:  # Ctrl-C: delivery can be interrupted at any point, but not left behind unseen
            uploader.terminate()
            uploader.wait()
            raise
        self._busy = uploader.returncode == LOCKED

    def lines(self) -> list[str]:
        """How the run stands, for people."""
        lines = []
        for lane in self.lanes():
            line = f"{self.info.id} {lane.backend}: {lane.state}, {lane.records} records"
            line += f", {lane.set_aside} set aside" if lane.set_aside else ""
            line += f" at {lane.address}" if lane.address else ""
            line += f" ({lane.error})" if lane.error else ""
            lines.append(line)
        if self._busy:
            lines.append(f"{self.info.id}: another uploader is at work on {self.directory.path}; it is left to it")
        elif self.outcome() is Outcome.PENDING:
            log = shlex.quote(str(self.directory.uploader_log))
            lines.append(f"{self.info.id}: what is pending stays in {self.directory.path}; details in {log}")
        if lost := self.lost():
            lines.append(f"{self.info.id}: {lost} records could not be written to the disk when they were logged")
        return lines

    def report(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "run": self.info.id,
            "name": self.info.name,
            "project": self.info.project,
            "directory": str(self.directory.path),
            "outcome": self.outcome().name.lower(),
            "lost": self.lost(),
            "backends": self.lanes(),
        }

    def _lane(self, backend: str, *, recording: bool) -> LaneReport:
        state = self.directory.lane_state(backend)
        if state is None:
            return LaneReport(backend, "recording" if recording else "pending", 0, 0, None, "", None)
        if recording:
            word = "recording"
        elif not state.done or self._more_than_held(backend):
            word = "pending"
        else:
            word = "set aside" if state.set_aside else "delivered"
        address, look = (state.address.url, state.address.look) if state.address else (None, "")
        return LaneReport(backend, word, state.records, state.set_aside, address, look, state.error)

    def _more_than_held(self, backend: str) -> bool:
        """True if the journal goes on behind what the backend holds: the run was resumed after it had been closed."""
        path = self.directory.lanes / f"{backend}.db"
        if not path.exists():
            return True
        ledger = Ledger(path)
        try:
            position = ledger.held().position
        finally:
            ledger.close()
        return bool(JournalReader(self.directory.journal, position).read(max_bytes=1, final=True))


def deliveries(folders: Iterable[Path]) -> list[Delivery]:
    """Every run in or below the folders, each once, oldest first within a folder."""
    found = {directory.path.resolve(): directory for folder in folders for directory in find_runs(folder)}
    return [Delivery(directory) for directory in found.values()]


def overall(found: Sequence[Delivery]) -> Outcome:
    """The worst of what single runs have come to."""
    order = list(Outcome)
    return max((delivery.outcome() for delivery in found), key=order.index, default=Outcome.NOTHING)
