"""The commands `unified-tracker predictions show|diff`."""

from __future__ import annotations

import shutil
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified_tracker._errors import TrackerError
from unified_tracker.predictions._detections import TASKS

if TYPE_CHECKING:
    from unified_tracker.predictions._comparison import Comparison
    from unified_tracker.predictions._document import Document, ShownEvaluation

NOTHING: Final = 4  # exit status: there is no page
MOST_ROWS: Final = 12

app = typer.Typer(
    name="predictions",
    help="Look at what a model got wrong, and at what changed between two evaluations.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A run directory, a work folder with runs below (the latest is meant), a page, a downloaded artifact, or "
        "an artifact: mlflow-artifact://run-ID-predictions:latest.",
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the page to this file.")]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")]


@app.command()
def show(
    target: Target,
    iou: Annotated[
        float | None,
        typer.Option(min=0.05, max=0.99, help="Match again at this IoU threshold too; run directories only."),
    ] = None,
    output: Output = None,
    browser: Browser = True,
) -> None:
    """Open the page of the recorded predictions, worst image first.

    Prints the path of the page. Exit status: 0; 4 if nothing is recorded there.
    """
    with _troubles_told():
        scratch = Path(tempfile.mkdtemp(prefix="unified-tracker-"))  # stays: the browser reads it later
        from unified_tracker.predictions._finding import find_page

        page = find_page(target, scratch)
        if iou is not None:
            from unified_tracker.predictions._report import page_at

            page = page_at(page, iou, scratch / "index.html")
        if output is not None:
            page = Path(shutil.copyfile(page, output))
        _hand_out(page, browser=browser)


@app.command()
def diff(
    first: Target,
    second: Target,
    at: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Which evaluations: step, label or id. Default: the latest of each."),
    ] = None,
    task: Annotated[str, typer.Option(help="instances, panoptic or semantic.")] = "instances",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Score that counts. Default: as recorded.")
    ] = None,
    output: Output = None,
    browser: Browser = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare two evaluations: what got fixed, what broke, image by image; as a table and as a page.

    Both targets may be the same run: then its latest evaluation is compared with the one before. Exit status: 0; 4 if
    nothing is recorded there, or the two cannot be compared.
    """
    with _troubles_told():
        from unified_tracker.predictions._comparison import compare
        from unified_tracker.predictions._finding import find_page
        from unified_tracker.predictions._page import read_page, write_page
        from unified_tracker.predictions._side_by_side import chosen, side_by_side

        scratch = Path(tempfile.mkdtemp(prefix="unified-tracker-"))
        places = [scratch / "first", scratch / "second"]
        pages = []
        for target, place in zip((first, second), places, strict=True):
            place.mkdir()
            pages.append(find_page(target, place))
        before, after = read_page(pages[0]), read_page(pages[1])
        same = pages[0].resolve() == pages[1].resolve()
        wanted = at or (None, None)
        a = chosen(before, wanted[0], -2 if same and at is None else -1)
        document = side_by_side(before, a, after, chosen(after, wanted[1]))
        known = next((each for each in TASKS if each == task), None)
        if known is None:
            raise TrackerError(f"--task {task!r}: there are {', '.join(TASKS)}")
        found = compare(document.images, *document.evaluations, task=known, threshold=threshold)
        page = output or scratch / "index.html"
        write_page(document, page)
        if as_json:
            _write_json(document, found, page)
            return
        _show_comparison(Console(), document, found)
        _hand_out(page, browser=browser)


@contextmanager
def _troubles_told() -> Iterator[None]:
    try:
        yield
    except (TrackerError, OSError) as error:
        Console(stderr=True).print(Text(str(error), "red"), soft_wrap=True)
        raise typer.Exit(NOTHING) from error


def _hand_out(page: Path, *, browser: bool) -> None:
    sys.stdout.write(f"{page.resolve()}\n")
    if browser and sys.stdout.isatty():
        webbrowser.open(page.resolve().as_uri())


def _show_comparison(console: Console, document: Document, found: Comparison) -> None:
    before, after = document.evaluations
    console.print(Text(f"{before.label} → {after.label}", "bold"))
    fixed = sum(change.fixed for change in found.changes)
    broken = sum(change.broken for change in found.changes)
    console.print(f"{len(found.changes)} images: {fixed} objects or errors fixed, {broken} broken")
    for note in document.notes:
        console.print(Text(note, "yellow"))
    table = Table("image", "found", "lost", "errors gone", "errors new")
    changed = [change for change in found.changes if change.fixed or change.broken]
    worst = sorted(changed, key=lambda change: (change.fixed - change.broken, change.name))
    for change in worst[:MOST_ROWS]:
        numbers = (change.found, change.lost, change.gone, change.new)
        table.add_row(Text(change.name), *(str(len(each) or "") for each in numbers))
    if table.row_count:
        console.print(table)
    if len(worst) > MOST_ROWS:
        console.print(f"{len(worst) - MOST_ROWS} more on the page")
    classes = _class_changes(document, before, after)
    if classes:
        table = Table("category", "AP", "before", "change")
        for name, old, new in classes[:MOST_ROWS]:
            table.add_row(
                Text(name), f"{new:.3f}", f"{old:.3f}", Text(f"{new - old:+.3f}", "green" if new > old else "red")
            )
        console.print(table)


def _class_changes(
    document: Document, before: ShownEvaluation, after: ShownEvaluation
) -> list[tuple[str, float, float]]:
    """Category, AP before and AP after, where both are known; the largest loss first."""
    old = {row.label: row.ap for row in before.classes.get("instances", [])}
    pairs = [
        ("all" if row.label < 0 else document.classes[row.label], known, row.ap)
        for row in after.classes.get("instances", [])
        if row.ap is not None and (known := old.get(row.label)) is not None
    ]
    return sorted(pairs, key=lambda pair: (pair[0] != "all", pair[2] - pair[1]))


def _write_json(document: Document, found: Comparison, page: Path) -> None:
    before, after = document.evaluations
    content = {
        "before": before.label,
        "after": after.label,
        "page": str(page.resolve()),
        "notes": document.notes,
        "images": [
            {
                "id": change.id,
                "name": change.name,
                "found": change.found,
                "lost": change.lost,
                "gone": change.gone,
                "new": change.new,
            }
            for change in found.changes
        ],
    }
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")
