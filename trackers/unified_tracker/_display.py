"""How runs, findings and progress look in a terminal, and as plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from unified_tracker._delivery import Delivery, LaneReport, RunReport
from unified_tracker._journal import ATTEMPT_SHIFT
from unified_tracker._tracker import Finding

COLOURS: Final = {
    "delivered": "green",
    "recording": "cyan",
    "pending": "yellow",
    "set aside": "red",
    "FINISHED": "green",
    "FAILED": "red",
    "KILLED": "red",
    "ok": "green",
    "warning": "yellow",
    "error": "red",
}
NARROW: Final = 60
LONG: Final = 150  # characters of an error; `--verbose` shows it whole


def show_run(console: Console, report: RunReport, *, verbose: bool = False) -> None:
    """A run: a line that says which, where and how it ended, and a few for each of its backends."""
    if not console.is_terminal:
        _show_unbroken(console, report, verbose=verbose)
        return
    console.print(_head(report), highlight=False)
    console.print(Padding(Text(_near(report.directory), "dim"), (0, 0, 0, 2)))
    backend_width = max(len(lane.backend) for lane in report.backends)
    state_width = max(len(lane.state) for lane in report.backends)
    for lane in report.backends:
        line = Text(f"{lane.backend:<{backend_width}}  ")
        line.append(f"{lane.state:<{state_width}}  ", COLOURS[lane.state])
        first, *rest = _lane_text(lane, verbose=verbose).split("\n")
        console.print(Padding(line + first, (0, 0, 0, 2)))
        for each in rest:
            each.overflow = "fold"
            console.print(Padding(each, (0, 0, 0, 4)))
    if report.lost:
        console.print(Padding(Text(_loss(report), "red"), (0, 0, 0, 2)))


def _show_unbroken(console: Console, report: RunReport, *, verbose: bool) -> None:
    """The same for a file or a pipe: a line a backend, however long."""
    lines = [_head(report).plain, f"  {report.directory}"]
    for lane in report.backends:
        facts = _lane_text(lane, verbose=verbose).plain.replace("\n", "; ")
        lines.append(f"  {lane.backend}: {lane.state}, {facts}")
    for line in [*lines, *([f"  {_loss(report)}"] if report.lost else [])]:
        _line(console, Text(line))


def _head(report: RunReport) -> Text:
    head = Text.assemble((report.run, "bold"))
    head.append(f"  {report.name}" if report.name else "")
    head.append(f"  in {report.project}" if report.project else "")
    head.append(time.strftime("  %Y-%m-%d %H:%M", time.localtime(report.created_ms / 1000)), "dim")
    return head.append(f"  {report.training}", COLOURS[report.training])


def _loss(report: RunReport) -> str:
    return f"{_count(report.lost, 'record')} could not be written to the disk when logged, and are nowhere"


def show_sum(console: Console, reports: Sequence[RunReport], *, command: str) -> None:
    """A line about all runs, and the command that delivers what waits."""
    words: dict[str, int] = {}
    for report in reports:
        word = {"incomplete": "delivered in part", "busy": "at work elsewhere"}.get(
            report.outcome, "recording" if report.training == "recording" else report.outcome
        )
        words[word] = words.get(word, 0) + 1
    waiting = [report for report in reports if report.outcome == "pending" and report.training != "recording"]
    line = f"{_count(len(reports), 'run')}: " + ", ".join(f"{count} {word}" for word, count in words.items())
    _line(console, Text(line))
    if waiting:
        _line(console, Text(f"to deliver: {command}"))


def show_delivery(console: Console, delivery: Delivery, report: RunReport) -> None:
    """What `sync` has come to with a run: as `runs` shows it, or a line a backend where there is no terminal."""
    if console.is_terminal:
        show_run(console, report)
    else:
        for lane in report.backends:
            facts = _waiting(lane) if lane.pending else _count(lane.records, "record")
            facts += f", {lane.set_aside} set aside" if lane.set_aside else ""
            facts += f" at {lane.address}" if lane.address else ""
            facts += f" ({lane.error})" if lane.error else ""
            _line(console, Text(f"{report.run} {lane.backend}: {lane.state}, {facts}"))
        if report.lost:
            _line(console, Text(f"{report.run}: {_loss(report)}"))
    if report.outcome == "busy":
        _line(console, Text(f"{report.run}: another uploader is at work on {report.directory}; it is left to it"))
    elif report.outcome == "pending":
        where = f"what is pending stays in {report.directory}; details in {_near(str(delivery.log))}"
        _line(console, Text(f"{report.run}: {where}"))


def show_dry(console: Console, report: RunReport) -> None:
    """What `sync` would do with a run."""
    lines = [
        f"{lane.backend}: would deliver {_count(lane.pending, 'record')}, {decimal(lane.pending_bytes)}"
        for lane in report.backends
        if lane.pending
    ]
    if report.training == "recording":
        lines = ["is being recorded, and delivered by its own uploader"]
    for line in lines or ["nothing to deliver"]:
        _line(console, Text(f"{report.run} {line}"))


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """The findings of `doctor`: what was looked at, what was found, and what mends it."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.message)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", "bold")
        table.add_row(Text(finding.level, COLOURS[finding.level]), finding.check, text)
    console.print(table)


@contextmanager
def delivery_progress(console: Console) -> Iterator[DeliveryProgress]:
    """Progress bars while runs are delivered, where the output is a terminal."""
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    if console.width < NARROW:
        columns = columns[0], columns[2]
    with Progress(*columns, _Trouble(), console=console, transient=True, disable=not console.is_terminal) as progress:
        yield DeliveryProgress(progress)


class DeliveryProgress:
    """A bar for each lane of the run that is being delivered: bytes of its journal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def deliver(self, delivery: Delivery) -> None:
        """Deliver a run, and show how far it is."""
        if self._progress.disable:
            delivery.deliver(lambda: None)
            return
        tasks = {
            lane.backend: self._progress.add_task(f"{delivery.info.id} {lane.backend}", total=lane.total_bytes)
            for lane in delivery.progress()
        }

        def tick() -> None:
            for lane in delivery.progress():
                waits = "" if lane.closed or lane.done_bytes < lane.total_bytes else "until the backend confirms"
                self._progress.update(tasks[lane.backend], completed=lane.done_bytes, trouble=lane.error or waits)

        try:
            delivery.deliver(tick)
        finally:
            for task in tasks.values():
                self._progress.remove_task(task)


class _Trouble(ProgressColumn):
    """What keeps a lane from going on, cut to the room that is left."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("trouble") or "", "yellow", overflow="ellipsis", no_wrap=True)


def _lane_text(lane: LaneReport, *, verbose: bool) -> Text:
    facts = [_count(lane.records, "record")] if not lane.pending else [_waiting(lane)]
    facts += [f"{lane.set_aside} set aside"] if lane.set_aside else []
    text = Text(", ".join(facts))
    if lane.error:
        text.append("\n" + (lane.error if verbose or len(lane.error) < LONG else f"{lane.error[:LONG]}…"), "yellow")
    if lane.address:
        text.append(f"\n{lane.address}", "dim")
    if verbose:
        for refused in lane.refused:
            attempt, number = refused.sequence >> ATTEMPT_SHIFT, refused.sequence & ((1 << ATTEMPT_SHIFT) - 1)
            text.append(f"\n#{attempt}.{number} {refused.detail}: ", "red")
            text.append(refused.reason)
    return text


def _waiting(lane: LaneReport) -> str:
    return f"{_count(lane.pending, 'record')} waiting, {decimal(lane.pending_bytes)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _near(directory: str) -> str:
    """A path as one would type it here."""
    try:
        return str(Path(directory).absolute().relative_to(Path.cwd()))
    except ValueError:
        return directory


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=not console.is_terminal, highlight=False)  # no line of a pipe is broken
