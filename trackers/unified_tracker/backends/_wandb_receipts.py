"""What was sent to W&B, and how much of it the server says it holds. `finish` returning says nothing about that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import wandb

TIMEOUT_S: Final = 15
PAGE: Final = 50
ENDED: Final = frozenset({"finished", "failed", "crashed", "killed"})


class Report(NamedTuple):
    """A run as the server tells it: lines of history, state, configuration."""

    lines: int
    state: str
    config: dict[str, Any]


class ReadBack:
    """Asks the server about one run, through W&B's public API. Every call is a request, bounded in time."""

    def __init__(self, entity: str, project: str, run_id: str) -> None:
        self._defaults = {"entity": entity, "project": project}
        self._path = f"{entity}/{project}/{run_id}"
        self._api: Any = None

    def report(self) -> Report:
        """What the server holds of the run now."""
        run = self._run()
        return Report(int(run.historyLineCount or 0), str(run.state), dict(run.config))

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """The files, of those named, that the server has, with their sizes."""
        wanted = sorted(names)
        run = self._run()
        parts = [wanted[first : first + PAGE] for first in range(0, len(wanted), PAGE)]
        return {file.name: int(file.size) for part in parts for file in run.files(names=part, per_page=PAGE)}

    def _run(self) -> Any:
        if self._api is None:
            self._api = wandb.Api(overrides=self._defaults, timeout=TIMEOUT_S)
        self._api.flush()  # it would answer from its memory
        return self._api.run(self._path)


class Mark(NamedTuple):
    """A record that was sent, with what must be there for the server to hold everything up to it."""

    sequence: int
    step: int | None
    lines: int
    files: int


class Receipts:
    """Rows and files sent by this process, in order, and the marks between them.

    Rows are lines of one file on the server, appended in order: a line count is a receipt for every row before it.
    """

    def __init__(self, lines: int) -> None:
        self._lines = lines  # on the server, once everything sent has arrived
        self._files: dict[str, tuple[int, int]] = {}  # without a receipt: size, number
        self._count = 0
        self._marks: list[Mark] = []

    @property
    def lines(self) -> int:
        """Lines that the server has once it holds everything."""
        return self._lines

    def row(self) -> None:
        """A row was sent."""
        self._lines += 1

    def file(self, name: str, size: int) -> None:
        """A file of the run was sent. Of files with the same name the last one counts."""
        self._count += 1
        self._files[name] = size, self._count

    def mark(self, sequence: int, step: int | None) -> None:
        """Everything up to this record has been sent."""
        mark = Mark(sequence, step, self._lines, self._count)
        while self._marks and (self._marks[-1].sequence == sequence or self._marks[-1][2:] == mark[2:]):
            self._marks.pop()  # a record that is sent in parts has been sent with its last part
        self._marks.append(mark)

    def pending_files(self) -> set[str]:
        """Files without a receipt."""
        return set(self._files)

    def files_there(self, sizes: Mapping[str, int]) -> None:
        """The server has these files, with these sizes."""
        for name in [name for name, (size, _) in self._files.items() if sizes.get(name) == size]:
            del self._files[name]

    def reached(self, lines: int) -> Mark | None:
        """The last mark up to which the server, with this many lines, holds everything. Forgets those before it."""
        missing = min((number for _, number in self._files.values()), default=self._count + 1)
        reached = [mark for mark in self._marks if mark.lines <= lines and mark.files < missing]
        self._marks = self._marks[len(reached) :]
        return reached[-1] if reached else None
