"""The demo's last page: what was recorded, read back from each backend, and the commands that show it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified_tracker._rundir import LaneState, RunDirectory
from unified_tracker.demo._read_back import Checkpoint, Recorded, read_journal

READ_BACK_S: Final = 120.0
UNKNOWN: Final = "cannot be read back by the demo"  # a plugin: its reader is its own
HEADLINES: Final = ("val/bbox/mAP", "val/segm/mAP", "train/loss")


def read_back(directory: RunDirectory, backend: str) -> Recorded | str:
    """Ask a backend what it has of a run, in a helper process.

    Returns:
        What it has, or a sentence that says why nobody knows.
    """
    command = [sys.executable, "-m", "unified_tracker.demo._read_back", str(directory.path), backend]
    try:
        asked = subprocess.run(command, capture_output=True, timeout=READ_BACK_S, cwd=directory.info().cwd, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {READ_BACK_S:g} s"
    if asked.returncode:
        return (asked.stderr.decode(errors="replace").strip().splitlines() or ["reading back failed"])[-1]
    if not asked.stdout:
        return UNKNOWN
    return msgspec.json.decode(asked.stdout, type=Recorded)


def show(console: Console, directory: RunDirectory) -> bool:
    """Print the page.

    Returns:
        True when every backend has closed the run, and those that the demo can read hold what was logged.
    """
    info = directory.info()
    logged = read_journal(directory)
    states = {backend: directory.lane_state(backend) for backend in info.backends}
    answers = {backend: read_back(directory, backend) for backend in info.backends}

    table = Table(title=f"Run {info.id}, {info.name}", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("logged by the training")
    for backend in info.backends:
        table.add_column(f"read back from {backend}")
    columns = [_rows(column) if isinstance(column, Recorded) else {} for column in (logged, *answers.values())]
    for label in columns[0]:
        table.add_row(label, *(column.get(label, "?") for column in columns))
    console.print(table)

    complete = True
    for backend, state in states.items():
        answer = answers[backend]
        if isinstance(answer, str):
            console.print(Text(f"{backend}: {answer}", style="yellow"))
            complete = complete and answer == UNKNOWN
        elif not _holds(answer, logged):
            console.print(Text(f"{backend} does not have all that was logged", style="red"))
            complete = False
        if state is None or not state.done:
            wait = f"unified-tracker sync {shlex.quote(str(directory.path))}"
            console.print(Text(f"{backend}: not everything is delivered yet. To deliver: {wait}", style="yellow"))
            complete = False
        elif state.set_aside:
            console.print(Text(f"{backend}: {state.set_aside} records were refused", style="yellow"))
    _how_to_look(console, directory, states)
    return complete


def _rows(recorded: Recorded) -> dict[str, str]:
    return {
        "parameters": str(recorded.params),
        "metrics": f"{len(recorded.metrics)} names, {sum(recorded.metrics.values())} values",
        **{f"  last {name}": _value(recorded.last.get(name)) for name in HEADLINES},
        "checkpoints": "\n".join(map(_checkpoint, recorded.checkpoints)) or "none",
        "other files": str(len(recorded.files)),
        "status": recorded.status or "-",
    }


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _checkpoint(checkpoint: Checkpoint) -> str:
    aliases = ", ".join(checkpoint.aliases)
    return f"{checkpoint.version} at step {checkpoint.step}" + (f": {aliases}" if aliases else "")


def _holds(answer: Recorded, logged: Recorded) -> bool:
    """True if a backend has every metric with as many values, and every checkpoint; names may be mapped by it."""
    return sorted(answer.metrics.values()) >= sorted(logged.metrics.values()) and len(answer.checkpoints) >= len(
        logged.checkpoints
    )


def _how_to_look(console: Console, directory: RunDirectory, states: dict[str, LaneState | None]) -> None:
    console.print(Text("\nTo look at it:", style="bold"))
    for backend, state in states.items():
        if state is not None and state.address is not None:
            console.print(Text(f"  {backend:8} {_runnable(state.address.look) or state.address.url}"), soft_wrap=True)
    console.print(Text(f"  journal  {directory.path}"), soft_wrap=True)


def _runnable(command: str) -> str:
    """The command with the path of its program, where that is beside our Python but not on the search path."""
    program, _, arguments = command.partition(" ")
    beside = Path(sys.executable).parent / program
    if program and shutil.which(program) is None and beside.exists():
        return f"{shlex.quote(str(beside))} {arguments}"
    return command
