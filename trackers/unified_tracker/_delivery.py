"""How far runs are delivered, and delivering them in the foreground: what the commands `runs` and `sync` stand on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import msgspec
from filelock import FileLock, Timeout

from unified_tracker import _pending, _plugins
from unified_tracker._errors import ConfigurationError
from unified_tracker._journal import JournalReader
from unified_tracker._launcher import QUIET
from unified_tracker._ledger import Refused, look_up
from unified_tracker._mask import mask_text
from unified_tracker._rundir import LaneState, RunDirectory, find_runs, write_json
from unified_tracker._survey import JournalSurvey
from unified_tracker._uploader import LOCKED
from unified_tracker.records import Status

LINGER_VARIABLE: Final = "UNIFIED_TRACKER_LINGER_S"
LINGER_S: Final = 60.0  # somebody waits in front of the terminal: the uploader in the background has ten minutes
LOOK_S: Final = 0.2
ENDING_S: Final = 5.0  # an uploader that has just delivered takes a moment to end

LaneWord = Literal["delivered", "pending", "set aside", "recording"]


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
        pending: Records that the backend does not hold for certain.
        pending_bytes: About their size in the journal; staged files come on top.
        set_aside: Records, and values of records, that it refused.
        refused: Which, and why. A file that was written over before it could be delivered is one of them.
        address: Where the run stands there; None before the first contact.
        look: The command that shows it; "" when the address alone does.
        error: The trouble that delivery had last.
    """

    backend: str
    state: LaneWord
    records: int
    pending: int
    pending_bytes: int
    set_aside: int
    refused: list[Refused]
    address: str | None
    look: str
    error: str | None


class RunReport(msgspec.Struct, frozen=True):
    """One run, as `runs --json` and `sync --json` print it.

    Attributes:
        training: "recording" while it goes on, then how it ended.
        outcome: How delivery stands (`Outcome`, lower case).
        lost: Records that could not be written to the disk when they were logged, and so are nowhere.
    """

    run: str
    name: str | None
    project: str | None
    directory: str
    created_ms: int
    training: Literal["recording"] | Status
    outcome: str
    lost: int
    backends: list[LaneReport]


class LaneProgress(msgspec.Struct, frozen=True):
    """How far a lane has come with the journal just now."""

    backend: str
    done_bytes: int
    total_bytes: int
    closed: bool
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

    @property
    def log(self) -> Path:
        """What uploader and lanes have said."""
        return self.directory.uploader_log

    @cached_property
    def _journal(self) -> JournalSurvey:
        return JournalSurvey(self.directory.journal)

    def report(self) -> RunReport:
        """How it stands now. Costs some reads of kilobytes, whatever the size of the journal."""
        recording = self._recording()
        self.__dict__.pop("_journal", None)  # looked at anew, after the writer: it may have written its last record
        lanes = [self._lane(backend, recording=recording) for backend in self.info.backends]
        lost = self._lost()
        return RunReport(
            self.info.id,
            self.info.name,
            self.info.project,
            str(self.directory.path.absolute()),
            self.info.created_ms,
            "recording" if recording else self._journal.status,
            self._outcome(lanes, lost).name.lower(),
            lost,
            lanes,
        )

    def progress(self) -> list[LaneProgress]:
        """How far lanes have come. For a journal that does not grow: the training is over."""
        total = self._journal.bytes
        found = []
        for backend in self.info.backends:
            state = self._state(backend)
            ahead = 0 if state.done else self._journal.bytes_after(max(state.held, state.read))
            found.append(LaneProgress(backend, total - ahead, total, state.done, state.error))
        return found

    def deliver(self, tick: Callable[[], None]) -> None:
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
                tick()
                time.sleep(LOOK_S)
        except BaseException:  # Ctrl-C: delivery can be interrupted at any point, but not left behind unseen
            uploader.terminate()
            uploader.wait()
            raise
        self._busy = uploader.returncode == LOCKED

    def go_online(self) -> None:
        """Let backends that have recorded this run offline deliver it to their servers, from the start of its journal.

        Nothing is delivered by it, and nothing happens to backends that are online.

        Raises:
            ConfigurationError: The training goes on, delivery is under way, the key is missing, or the offline run has
                been uploaded by other means. Nothing has changed.
        """
        if self.directory.writer_alive():
            raise ConfigurationError(f"run {self.info.id} is still being recorded; it can go online when it has ended")
        for name, options in self.info.backends.items():
            if options.get("mode") != "offline" or (going_online := _plugins.load(name).going_online) is None:
                continue
            try:
                lock = FileLock(self.directory.uploader_lock)
                with lock.acquire(timeout=ENDING_S), going_online(self.directory.path, options) as changed:
                    for file in (f"{name}.json", f"{name}.db"):  # before the options: an offline lane only starts anew
                        (self.directory.lanes / file).unlink(missing_ok=True)
                    backends = {**self.info.backends, name: changed}
                    self.info = msgspec.structs.replace(self.info, backends=backends)
                    write_json(self.directory.path / "run.json", self.info)
            except Timeout as error:
                raise ConfigurationError(f"run {self.info.id} is being delivered by another process") from error

    def _recording(self) -> bool:
        try:
            return self.directory.writer_alive()
        except PermissionError:  # somebody else's run: whether it is being written is not for us to see
            return False

    def _state(self, backend: str) -> LaneState:
        """What a lane says; before its first word, and where its file is damaged, nothing of it is taken for held."""
        try:
            return self.directory.lane_state(backend) or LaneState(backend, 0)
        except msgspec.MsgspecError:
            return LaneState(backend, 0, error="the file with its state is damaged; `sync` writes it anew")

    def _outcome(self, lanes: Sequence[LaneReport], lost: int) -> Outcome:
        states = {lane.state for lane in lanes}
        if states & {"pending", "recording"}:
            return Outcome.BUSY if self._busy else Outcome.PENDING
        return Outcome.INCOMPLETE if "set aside" in states or lost else Outcome.DELIVERED

    def _lost(self) -> int:
        """What the lanes have counted, if they have read everything; else what the journal says."""
        states = [self._state(backend) for backend in self.info.backends]
        counted = [getattr(state, "lost", None) for state in states if state.done]
        if len(counted) == len(states) and None not in counted:
            return max((count for count in counted if count is not None), default=0)
        return self._journal.lost()

    def _lane(self, backend: str, *, recording: bool) -> LaneReport:
        state = self._state(backend)
        delivered = state.done and not recording and not self._more_than_held(backend, state)
        refused = look_up(self.directory.lanes / f"{backend}.db")[1] if state.set_aside else []
        address, look = (mask_text(state.address.url), mask_text(state.address.look)) if state.address else (None, "")
        word: LaneWord = "pending"
        if recording:
            word = "recording"
        elif delivered:
            word = "set aside" if state.set_aside else "delivered"
        return LaneReport(
            backend,
            word,
            state.records,
            0 if delivered else self._journal.records_after(state.held),
            0 if delivered else self._journal.bytes_after(state.held),
            state.set_aside,
            refused,
            address,
            look,
            state.error,
        )

    def _more_than_held(self, backend: str, state: LaneState) -> bool:
        """True if the journal goes on behind what the backend holds: the run was resumed after it had been closed."""
        last = self._journal.last
        if last is None or last.sequence <= state.held:
            return False
        held, _ = look_up(self.directory.lanes / f"{backend}.db")
        return bool(JournalReader(self.directory.journal, held.position).read(max_bytes=1, final=True))


def deliveries(folders: Iterable[Path], *, everywhere: bool = False) -> list[Delivery]:
    """Every run in or below the folders, each once, oldest first within a folder.

    Args:
        folders: Where to look.
        everywhere: Look also where this user has runs that are not delivered, in any folder.
    """
    directories = [directory for folder in folders for directory in find_runs(folder)]
    if everywhere:
        directories += [directory for path in _pending.waiting() for directory in find_runs(path)]
    found = {directory.path.resolve(): directory for directory in directories}
    return [Delivery(directory) for directory in found.values()]


def overall(reports: Sequence[RunReport]) -> Outcome:
    """The worst of what single runs have come to."""
    order = list(Outcome)
    outcomes = [Outcome[report.outcome.upper()] for report in reports]
    return max(outcomes, key=order.index, default=Outcome.NOTHING)
