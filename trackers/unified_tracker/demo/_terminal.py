"""The demo as the user sees it: a progress display, then the summary. The training itself is another process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from unified_tracker import _plugins
from unified_tracker._errors import ConfigurationError
from unified_tracker._rundir import RunDirectory, find_runs
from unified_tracker.demo import _plan, _summary

PACKAGES: Final = {"detectron2": ("torch", "detectron2"), "mmdetection": ("torch", "mmcv", "mmdet")}
DELIVERY_S: Final = 60.0
LOG_TAIL: Final = 15


def run_demo(
    framework: _plan.Framework, trackers: Sequence[str], output: Path, *, console: Console | None = None
) -> int:
    """Train on generated shapes, tracked, and show what was recorded.

    Args:
        framework: "detectron2" or "mmdetection"; must be installed.
        trackers: Backends by name.
        output: Folder for data, logs, checkpoints and the backends' files; made if missing.
        console: Where to print; default is standard output.

    Returns:
        0 when the training succeeded and each backend has everything; 1 when the training failed; 2 when something
        is not delivered.

    Raises:
        ConfigurationError: The framework or a backend is not installed.
    """
    console = console or Console()
    _require(framework, trackers)
    output = output.absolute()
    plan = _plan.Plan(framework, tuple(trackers), _options(output), str(output))
    plan.work_dir.mkdir(parents=True, exist_ok=True)
    log = plan.work_dir / "training.log"
    names = " and ".join(trackers)
    console.print(f"A small Mask R-CNN in [bold]{framework}[/] on generated shapes, recorded in [bold]{names}[/].")
    console.print(Text(f"Output of the training: {log}"), soft_wrap=True)
    before = {directory.path for directory in find_runs(plan.work_dir)}
    started = time.monotonic()
    code = _train(plan, log, console)
    runs = [directory for directory in find_runs(plan.work_dir) if directory.path not in before]
    if code or not runs:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
        console.print(Text("\n".join(tail)))
        console.print(Text(f"The training ended with exit status {code}; its whole output: {log}", style="red"))
        return 1
    _wait(runs[-1], console)
    console.print(f"Trained and delivered in {time.monotonic() - started:.0f} s.\n")
    return 0 if _summary.show(console, runs[-1]) else 2


def _require(framework: str, trackers: Sequence[str]) -> None:
    missing = [package for package in PACKAGES[framework] if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigurationError(
            f"the demo trains with {framework}, and {' and '.join(missing)} cannot be imported here; "
            "`nox -s demo` in the repository sets up everything"
        )
    for name in trackers:
        _plugins.require(_plugins.load(name))


def _options(output: Path) -> dict[str, dict[str, str]]:
    return {"mlflow": {"tracking_uri": f"sqlite:///{output / 'mlflow.db'}"}, "wandb": {"mode": "offline"}}


def _train(plan: _plan.Plan, log: Path, console: Console) -> int:
    """Run the worker to its end; returns its exit status."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "unified_tracker.demo._worker", msgspec.json.encode(plan).decode(), str(writing)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=plan.output,  # the backends' relative defaults are meant from here: nothing is written elsewhere
            env=environment,
            pass_fds=[writing],
        )
    os.close(writing)
    try:
        _display(plan, _lines(reading), console)
        return worker.wait()
    except KeyboardInterrupt:  # the terminal has sent it to the worker too, which records the run as KILLED
        return worker.wait()


def _lines(fd: int) -> Iterator[_plan.Progress]:
    with os.fdopen(fd, "rb") as pipe:
        for line in pipe:
            yield msgspec.json.decode(line, type=_plan.Progress)


def _display(plan: _plan.Plan, lines: Iterator[_plan.Progress], console: Console) -> None:
    columns = (
        TextColumn("{task.description:11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("iterations  {task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    shown = ""
    with Progress(*columns, console=console) as progress:
        task: TaskID = progress.add_task("starting", total=plan.iterations, loss="")
        for line in lines:
            if not console.is_terminal and line.phase != shown:  # in a log file: one line for each phase
                console.print(f"{line.phase}, iteration {line.step}")
            shown = line.phase
            if line.loss is not None:
                progress.update(task, loss=f"loss {line.loss:.3f}")
            progress.update(task, description=line.phase, completed=line.step or None)
        if shown == "delivering":
            progress.update(task, description="finished", completed=plan.iterations)


def _wait(directory: RunDirectory, console: Console) -> None:
    """The training waits for delivery by itself, but not for ever; a demo has some more patience."""
    deadline = time.monotonic() + DELIVERY_S
    backends = directory.info().backends
    with console.status("delivering"):
        while time.monotonic() < deadline:
            states = [directory.lane_state(backend) for backend in backends]
            if all(state is not None and state.done for state in states):
                return
            time.sleep(0.2)
