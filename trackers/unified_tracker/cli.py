"""The command `unified-tracker`. Typer and Rich are imported here and nowhere else in what a training imports."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified_tracker import _artifact_commands, _display, _doctor, _pending, _plugins
from unified_tracker._delivery import Delivery, Outcome, RunReport, deliveries, overall
from unified_tracker._errors import ConfigurationError
from unified_tracker.datasets import _commands as _datasets
from unified_tracker.predictions import _commands

app = typer.Typer(
    name="unified-tracker",
    help="Training runs recorded in MLflow, Weights & Biases or a plugin: look, deliver, find out what is wrong.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # a traceback in a bug report must not carry credentials
)

app.add_typer(_artifact_commands.app)
app.add_typer(_commands.app)
app.add_typer(_datasets.app)

Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="DIR", help="Run directories, or folders that hold some below them. Default: this folder."),
]
Everywhere = Annotated[
    bool, typer.Option("--all", help="Every run of this user that is not delivered yet, wherever it is.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class FrameworkChoice(str, Enum):
    """What the demo can train with."""

    detectron2 = "detectron2"
    mmdetection = "mmdetection"


@app.command()
def demo(
    framework: Annotated[FrameworkChoice, typer.Option(help="What trains.")] = FrameworkChoice.detectron2,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Backend: mlflow, wandb, both, or a plugin. May be given twice.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("demo-output"),
) -> None:
    """Train a small Mask R-CNN on generated shapes, record it, and show what was recorded. Takes about a minute."""
    from unified_tracker.demo import run_demo  # brings the drawing of shapes with it

    names: list[str] = []
    for given in tracker or ["mlflow"]:
        names += ["mlflow", "wandb"] if given == "both" else given.split(",")
    try:
        code = run_demo(framework.value, list(dict.fromkeys(names)), output, console=Console())
    except ConfigurationError as error:
        _stop(str(error), 1)
    raise typer.Exit(code)


@app.command()
def sync(
    folders: Folders = None,
    everywhere: Everywhere = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be delivered, deliver nothing.")] = False,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Deliver also to W&B what was recorded offline, now that there is a key. "
            "Refused where `wandb sync` has uploaded it already.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Deliver what is waiting in run directories.

    May be interrupted and repeated at any time: what a backend holds is not sent again. A backend that does not answer
    is waited for, a minute each run; `UNIFIED_TRACKER_LINGER_S` sets another time, in seconds.

    Exit status, of several runs the one that stands first here:

    * 1: a run could not go `--online`
    * 2: something is pending
    * 5: another process is delivering
    * 3: delivered, but records were set aside, lost, or their files written over
    * 0: everything is delivered
    * 4: there is no run directory
    """
    found = _found(folders, everywhere=everywhere)
    console = Console(stderr=as_json)
    failed = online and not dry_run and not _go_online(found)
    reports: list[RunReport] = []
    with _display.delivery_progress(console) as progress:
        for delivery in found:
            report = delivery.report()
            if not dry_run and report.outcome == Outcome.PENDING.name.lower():
                try:
                    progress.deliver(delivery)
                except OSError as error:
                    _complain(f"run {report.run} cannot be delivered: {error}")
                report = delivery.report()
            _settle(delivery, report)
            reports.append(report)
            if as_json:
                continue
            if dry_run:
                _display.show_dry(console, report)
            else:
                _display.show_delivery(console, delivery, report)
    if as_json:
        _write_json(reports)
    raise typer.Exit(1 if failed else overall(reports).exit_code if found else 0)


@app.command()
def runs(
    folders: Folders = None,
    everywhere: Everywhere = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Which records were set aside, and why. `--json` always says it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs in run directories: how the training ended, and how far each backend holds it.

    Asks no backend, and is fast on journals of any size.

    Exit status: 0, whatever the state of the runs; 4 if there is no run directory.
    """
    found = _found(folders, everywhere=everywhere)
    reports = []
    for delivery in found:
        reports.append(delivery.report())
        _settle(delivery, reports[-1])
    if as_json:
        _write_json(reports)
        return
    if not found:
        return
    console = Console()
    for report in reports:
        _display.show_run(console, report, verbose=verbose)
    words = ["unified-tracker", "sync", *map(str, folders or ()), *(["--all"] if everywhere else [])]
    _display.show_sum(console, reports, command=shlex.join(words))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at what recording needs, and say what mends what is wrong.

    Packages that do not go together; each backend: where a training in this folder would record, and whether the
    server answers and lets us in; disk, file system, clock, uploader; runs that are not delivered. Takes some seconds.
    Values of credentials are never shown.

    Exit status: 0 without errors, warnings or not; 1 with an error.
    """
    console = Console()
    if as_json:
        findings = _doctor.examine(Path())
        _write_json(findings)
    else:
        with console.status("looking"):
            findings = _doctor.examine(Path())
        _display.show_findings(console, findings)
    raise typer.Exit(1 if any(finding.level == "error" for finding in findings) else 0)


@app.command()
def backends(as_json: AsJson = False) -> None:
    """List the backends that are installed, and what a pip install would add."""
    listed = [_backend(name) for name in sorted({*_plugins.installed(), *_plugins.KNOWN})]
    if as_json:
        _write_json(listed)
        return
    table = Table("backend", "distribution", "version", "usable")
    for entry in listed:
        table.add_row(entry.name, entry.distribution or "-", entry.version or "-", Text(entry.trouble or "yes"))
    Console().print(table)


class BackendReport(msgspec.Struct, frozen=True):
    """A backend as `backends` lists it; `trouble` says what keeps it from being used, and what mends that."""

    name: str
    distribution: str | None
    version: str | None
    usable: bool
    trouble: str | None


def _backend(name: str) -> BackendReport:
    points = _plugins.installed().get(name, [])
    distribution = points[0].dist if points else None
    trouble: str | None = None
    try:
        _plugins.require(_plugins.load(name))
    except ConfigurationError as error:
        trouble = str(error) if points else _plugins.KNOWN[name]
    return BackendReport(
        name,
        distribution.name if distribution else None,
        distribution.version if distribution else None,
        trouble is None,
        trouble,
    )


def _found(folders: list[Path] | None, *, everywhere: bool) -> list[Delivery]:
    """The runs that are meant; ends the command where there is none."""
    given = folders or ([] if everywhere else [Path()])
    for folder in given:
        if not folder.is_dir():
            _stop(f"{folder} is not a folder", Outcome.NOTHING.exit_code)
    found = deliveries(given, everywhere=everywhere)
    if not found and everywhere:
        Console(stderr=True).print("no run of this user is waiting")
    elif not found:
        _stop(f"no run directory in or below {', '.join(str(folder) for folder in given)}", Outcome.NOTHING.exit_code)
    return found


def _go_online(found: list[Delivery]) -> bool:
    """Turn offline runs to their servers; False if one of them cannot be."""
    refused = [trouble for trouble in map(_refusal, found) if trouble]
    for trouble in refused:
        _complain(trouble)
    return not refused


def _refusal(delivery: Delivery) -> str:
    """Why a run cannot go online; "" if it is, or has nothing to do with it."""
    try:
        delivery.go_online()
    except (ConfigurationError, OSError) as error:
        return str(error)
    return ""


def _settle(delivery: Delivery, report: RunReport) -> None:
    """A run that is delivered no longer waits."""
    if Outcome[report.outcome.upper()] in {Outcome.DELIVERED, Outcome.INCOMPLETE}:
        _pending.forget(delivery.directory.path)


def _write_json(content: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")


def _complain(why: str) -> None:
    Console(stderr=True).print(Text(why, "red"), soft_wrap=True)


def _stop(why: str, code: int) -> NoReturn:
    _complain(why)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
