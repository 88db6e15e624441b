"""The command `unified-tracker`. Typer and Rich are imported here and nowhere else in what a training imports."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified_tracker import _plugins
from unified_tracker._delivery import Delivery, Outcome, deliveries, overall
from unified_tracker._errors import ConfigurationError

app = typer.Typer(
    name="unified-tracker",
    help="Training runs recorded in MLflow, Weights & Biases or a plugin: deliver, list, try out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # a traceback in a bug report must not carry credentials
)

Folders = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[DIR]...", help="Run directories, or folders that hold some below them. Default: this folder."
    ),
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
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be delivered, deliver nothing.")] = False,
) -> None:
    """Deliver what is waiting in run directories.

    Exit status: 0 everything is delivered; 2 something is pending; 3 delivered, but records were set aside or lost;
    4 no run directory found; 5 another process is delivering.
    """
    found = _found(folders)
    console = Console(stderr=as_json)
    for delivery in found:
        if not dry_run and delivery.outcome() is Outcome.PENDING:
            _deliver(delivery, console)
    if as_json:
        _print_json(found)
    else:
        for delivery in found:
            for line in delivery.lines():
                console.print(Text(line), soft_wrap=True)
    raise typer.Exit(overall(found).exit_code)


@app.command()
def runs(folders: Folders = None, as_json: AsJson = False) -> None:
    """List the runs in run directories, and how far they are delivered."""
    found = _found(folders)
    if as_json:
        _print_json(found)
        return
    table = Table("run", "name", "project", "backend", "state", "records", "last error")
    for delivery in found:
        info = delivery.info
        for lane in delivery.lanes():
            table.add_row(
                info.id,
                Text(info.name or ""),
                Text(info.project or ""),
                lane.backend,
                lane.state,
                str(lane.records),
                Text(lane.error or ""),
            )
    Console().print(table)


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


def _deliver(delivery: Delivery, console: Console) -> None:
    with console.status("") as status:

        def show() -> None:
            states = ", ".join(f"{lane.backend} {lane.records} records, {lane.state}" for lane in delivery.lanes())
            status.update(Text(f"run {delivery.info.id}: {states}"))

        delivery.deliver(show)


def _found(folders: list[Path] | None) -> list[Delivery]:
    given = folders or [Path()]
    for folder in given:
        if not folder.is_dir():
            _stop(f"{folder} is not a folder", Outcome.NOTHING.exit_code)
    found = deliveries(given)
    if not found:
        _stop(f"no run directory in or below {', '.join(str(folder) for folder in given)}", Outcome.NOTHING.exit_code)
    return found


def _print_json(found: list[Delivery]) -> None:
    _write_json([delivery.report() for delivery in found])


def _write_json(content: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")


def _stop(why: str, code: int) -> NoReturn:
    Console(stderr=True).print(Text(why, style="red"), soft_wrap=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
