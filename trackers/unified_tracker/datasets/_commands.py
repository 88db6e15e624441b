"""The commands `unified-tracker dataset create|list|get|diff`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from unified_tracker._artifact_commands import (
    AsJson,
    Backends,
    Output,
    Project,
    Reference,
    fetch_and_show,
    list_and_show,
)
from unified_tracker._errors import TrackerError

if TYPE_CHECKING:
    from unified_tracker.datasets._changes import Changes, Content
    from unified_tracker.datasets._create import Created
    from unified_tracker.datasets._flaws import Flaw

FAILED, PENDING, NOTHING = 1, 2, 4  # exit status
MOST_ROWS: Final = 12
SPREAD: Final = ("--categories", "--supercategories")
# As W&B's demo spells them.
SPELT: Final = {f"--{word.replace('-', '_')}": f"--{word}" for word in ("json-file", "image-dir")}
SPELT.update({f"--{word}_fraction": f"--{word}-fraction" for word in ("select", "after")})

app = typer.Typer(
    name="dataset",
    help="Data sets as versioned artifacts.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


class ImagesChoice(str, Enum):
    """What happens to the image files."""

    link = "link"
    copy = "copy"
    reference = "reference"


class SpreadingCommand(TyperCommand):
    """Takes `--categories a b` as W&B's demo has it, for `--categories a --categories b`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(arguments: list[str]) -> list[str]:
    """The arguments with an option of several values repeated for each, and the demo's spellings of others."""
    result: list[str] = []
    several = ""
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, value = argument.partition("=")
            argument = SPELT.get(name, name) + equals + value
            several = argument if argument in SPREAD else ""
        elif several and result[-1] != several:
            result.append(several)
        result.append(argument)
    return result


@app.command(cls=SpreadingCommand)
def create(
    name: Annotated[str, typer.Option(help="Name of the data set: letters, digits, `_ . -`.")],
    json_file: Annotated[Path, typer.Option(help="COCO instances.")],
    image_dir: Annotated[Path, typer.Option(help="Folder that the file names in it are relative to.")],
    categories: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Take images that have one of these categories.")
    ] = None,
    supercategories: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Likewise; with both, a category must be in both.")
    ] = None,
    select_fraction: Annotated[float, typer.Option(help="Fraction of those images that is taken, 0 to 1.")] = 1.0,
    after_fraction: Annotated[float, typer.Option(help="Fraction of them, sorted by id, that is passed over.")] = 0.0,
    images: Annotated[
        ImagesChoice,
        typer.Option(
            help="`link` files until they are delivered, `copy` them first, or `reference` them where they are, by "
            "path and hash, and upload none."
        ),
    ] = ImagesChoice.link,
    strict: Annotated[bool, typer.Option("--strict", help="Record nothing if anything is broken.")] = False,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Backend: mlflow, wandb, or a plugin. May be given twice.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="MLflow experiment, W&B project.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Name that moves to this version; `latest` does anyway.")
    ] = None,
    dir: Annotated[  # noqa: A002 -- as in `start_run`
        Path | None, typer.Option(help="Folder for the run directory. Default: this one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Record a COCO data set, or a part of one, as the next version of an artifact.

    Images that have an annotation of the chosen categories are sorted by id, and a slice of them is taken: 0.8 after 0,
    and 0.2 after 0.8, share no image. The content of the latest version makes no new one; other content makes one, and
    what has changed is said. What is broken (files that are missing or no pictures, boxes that enclose nothing, ids
    that are unknown or stand twice, unsafe file names) is left out and reported.

    Exit status: 0 if it was recorded, or has not changed; 1 if it could not be, or `--strict` refuses it; 2 if it was
    recorded and is not delivered yet: `unified-tracker sync` goes on.
    """
    from unified_tracker.datasets._create import create_dataset
    from unified_tracker.datasets._flaws import BrokenDatasetError
    from unified_tracker.datasets._selection import Selection

    chosen = [part for each in tracker or () for part in each.split(",")]
    errors = Console(stderr=True)
    try:
        with _progress(errors) as steps:
            made = create_dataset(
                name,
                json_file,
                image_dir,
                selection=Selection(
                    tuple(categories or ()), tuple(supercategories or ()), select_fraction, after_fraction
                ),
                images=images.value,
                strict=strict,
                tracker=chosen or None,
                project=project,
                aliases=alias or (),
                dir=dir,
                steps=steps,
            )
    except BrokenDatasetError as error:
        show_flaws(errors, error.flaws)
        errors.print(Text("nothing is recorded, since --strict was given", "red"))
        if as_json:
            _write_json({"name": name, "outcome": "refused", "flaws": error.flaws})
        raise typer.Exit(FAILED) from error
    except (TrackerError, OSError) as error:
        _fail(errors, error, FAILED)
    show_flaws(errors, made.flaws)
    if as_json:
        _write_json(_as_data(made))
    else:
        show_created(Console(), made)
    raise typer.Exit(PENDING if made.outcome == "pending" else 0)


@app.command("list")
def list_datasets(
    tracker: Backends = None,
    project: Project = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List versions of data sets, newest first. Exit status: as `artifact list`."""
    list_and_show(tracker, kind="dataset", project=project, limit=limit, as_json=as_json)


@app.command()
def get(reference: Reference, output: Output = None, as_json: AsJson = False) -> None:
    """Fetch a data set into this machine's cache, and print its folder. Exit status: as `artifact get`."""
    fetch_and_show(reference, output, as_json=as_json, kind="dataset")


@app.command()
def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A reference, a folder with `annotations.json`, or a file.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what has changed from one data set to another: images, annotations by class, categories.

    Images are recognised by their file names, annotations by what they say: new ids alone are no change.

    Exit status: 0, whether they differ or not; 4 if one of them is not there.
    """
    from unified_tracker.datasets._changes import compare

    errors = Console(stderr=True)
    try:
        changes = compare(_content(first), _content(second))
    except (TrackerError, OSError) as error:
        _fail(errors, error, NOTHING)
    if as_json:
        _write_json({"before": first, "after": second, "same": not changes, "changes": changes})
        return
    show_changes(Console(), changes)


# ---- what is printed -----------------------------------------------------------------------------------------------


def show_flaws(console: Console, flaws: list[Flaw]) -> None:
    """What is broken: how many of each kind, and the first of them."""
    if not flaws:
        return
    total = sum(flaw.count for flaw in flaws)
    _line(console, Text(f"{total:,} {'entry is' if total == 1 else 'entries are'} broken and left out", "yellow"))
    for flaw in flaws:
        _line(console, Text(f"  {flaw.kind}: {flaw.count:,}", "yellow"))
        for example in flaw.examples:
            _line(console, Text(f"    {_printable(example)}", "dim"))
        if flaw.count > len(flaw.examples):
            _line(console, Text(f"    and {flaw.count - len(flaw.examples):,} more", "dim"))


def show_created(console: Console, made: Created) -> None:
    """What has become of a data set."""
    card = made.card
    numbers = f"{card.images:,} images, {card.annotations:,} annotations, {len(card.classes):,} classes"
    _line(console, Text.assemble((made.name, "bold"), f"  {numbers}  digest {card.digest[:12]}"))
    for backend, version in made.versions.items():
        reference = made.references[backend]
        if made.outcome == "unchanged":
            _line(console, Text(f"  {backend}: unchanged, {version or 'the latest version'}  {reference}", "green"))
        else:
            _line(console, Text(f"  {backend}: {version or 'recorded'}  {reference}", "green"))
    if made.outcome == "off":
        _line(console, Text("  tracking is off: nothing is recorded", "yellow"))
    if made.outcome == "pending":
        _line(console, Text(f"  not delivered yet; unified-tracker sync {made.run_dir}", "yellow"))
    if made.changes is not None:
        show_changes(console, made.changes)


def show_changes(console: Console, changes: Changes) -> None:
    """What has changed, as text and as a table of classes."""
    if not changes:
        _line(console, Text("nothing has changed"))
    counts = changes.counts()
    for what in ("images", "annotations", "categories"):
        numbers = {how: counts[f"{what}_{how}"] for how in ("added", "removed", "changed")}
        if any(numbers.values()):
            said = ", ".join(f"{number:,} {how}" for how, number in numbers.items() if number)
            _line(console, Text(f"{what}: {said}"))
    if not changes.files_compared:
        _line(console, Text("image files are not compared: one side does not say what is in them", "dim"))
    for how, names in (
        ("added", changes.images_added),
        ("removed", changes.images_removed),
        ("changed", changes.images_changed),
    ):
        for name in names[:MOST_ROWS]:
            _line(console, Text(f"  {how} {_printable(name)}", "dim"))
        if len(names) > MOST_ROWS:
            _line(console, Text(f"  and {len(names) - MOST_ROWS:,} more {how}", "dim"))
    if changes.classes:
        table = Table("class", "added", "removed", "changed")
        most = sorted(changes.classes.items(), key=lambda each: -(each[1].added + each[1].removed + each[1].changed))
        for name, each in most[:MOST_ROWS]:
            table.add_row(Text(name), *(f"{number:,}" if number else "" for number in msgspec.structs.astuple(each)))
        console.print(table)
        if len(most) > MOST_ROWS:
            _line(console, Text(f"{len(most) - MOST_ROWS:,} more classes", "dim"))
    named = {"new": changes.categories_added, "gone": changes.categories_removed, "other": changes.categories_changed}
    for how, names in named.items():
        if names:
            _line(console, Text(f"{how} categories: {', '.join(map(_printable, names[:MOST_ROWS]))}"))


# ---- inside --------------------------------------------------------------------------------------------------------


def _content(target: str) -> Content:
    from unified_tracker._reference import parse
    from unified_tracker.datasets._changes import read_content

    if parse(target) is None:
        return read_content(Path(target))
    from unified_tracker._fetching import fetch

    return read_content(fetch(target).folder)


def _as_data(made: Created) -> dict[str, Any]:
    card = msgspec.to_builtins(made.card)
    numbers = {name: card[name] for name in ("digest", "images", "annotations", "classes", "sizes", "selection")}
    return {
        "name": made.name,
        "outcome": made.outcome,
        "versions": made.versions,
        "references": made.references,
        **numbers,
        "changes": made.changes,
        "flaws": made.flaws,
        "run_dir": made.run_dir,
    }


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    """Bars on a terminal; elsewhere nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        @contextmanager
        def step(what: str, count: int) -> Iterator[Callable[[], None]]:
            task = progress.add_task(what, total=count or None)
            try:
                yield lambda: progress.advance(task)
            finally:
                progress.remove_task(task)

        yield step


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _printable(text: str) -> str:
    """Without what would move the cursor or change its colour: file names may hold anything."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _write_json(content: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")


def _fail(console: Console, error: Exception, code: int) -> Any:
    console.print(Text(_printable(str(error)), "red"), soft_wrap=True)
    raise typer.Exit(code) from error
