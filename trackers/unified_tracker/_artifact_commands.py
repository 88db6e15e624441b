"""The commands `unified-tracker artifact list|get|lineage`, and what `dataset list|get` shares with them."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from unified_tracker import _settings
from unified_tracker._errors import ConfigurationError, TrackerError
from unified_tracker._reference import parse

if TYPE_CHECKING:
    from unified_tracker._lineage import LineageArtifact, LineageRun
    from unified_tracker._versions import ArtifactVersion

TROUBLE: Final = 1  # exit status: a backend cannot be asked, or refuses
NOTHING: Final = 4  # exit status: there is no such thing
STEPS: Final = ("epoch_", "iter_")
DAY_S: Final = 86_400
WIDE: Final = 400

app = typer.Typer(
    name="artifact",
    help="Models, data sets and results that runs have recorded: what there is, fetch it, where it comes from.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Reference = Annotated[
    str,
    typer.Argument(
        metavar="REFERENCE",
        help="mlflow-artifact://[experiment/]name:alias, wandb-artifact://[entity/project/]name:alias, or "
        "models:/name@alias.",
    ),
]
Backends = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker", help="Backend to ask: mlflow, wandb, a plugin. May be given twice. Default: a training's."
    ),
]
Project = Annotated[str | None, typer.Option(help="Only this MLflow experiment or W&B project.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Copy the files into this folder, which must be empty or new.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command("list")
def list_artifacts(
    kind: Annotated[str | None, typer.Option("--type", help="model, dataset, predictions, ...")] = None,
    sort: Annotated[
        str | None,
        typer.Option(help='A metric, best first: "bbox/mAP" means val/bbox/mAP, or test/bbox/mAP where there is none.'),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only artifacts of this name.")] = None,
    tracker: Backends = None,
    project: Project = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List versions of artifacts, newest first or best first, over runs, frameworks and backends.

    Exit status: 0; 1 if a backend could not be asked (what the others hold is listed); 4 if there is nothing.
    """
    list_and_show(tracker, kind=kind, sort=sort, name=name, project=project, limit=limit, as_json=as_json)


@app.command()
def get(reference: Reference, output: Output = None, as_json: AsJson = False) -> None:
    """Fetch a version of an artifact into this machine's cache, and print the folder that holds its files.

    The cache is shared: do not write into that folder; `--output` makes a copy of your own. Exit status: 0; 1 if the
    backend cannot be asked, or what it holds is refused; 4 if there is no such version.
    """
    fetch_and_show(reference, output, as_json=as_json)


@app.command()
def lineage(reference: Reference, as_json: AsJson = False) -> None:
    """Show what an artifact was made from, through all stages of training, and what was made from it.

    Exit status: 0; 4 if there is no such version.
    """
    with _troubles_told():
        from unified_tracker._lineage import Lineage, plain
        from unified_tracker._store import open_store

        parsed = parse(reference)
        if parsed is None:
            raise ConfigurationError(f"{reference!r} is no artifact reference")
        found = Lineage(open_store).of(parsed)
        if as_json:
            _write_json(plain(found))
            return
        tree = Tree(_artifact_text(found))
        _grow(tree, found)
        _console().print(tree)


def list_and_show(
    tracker: Sequence[str] | None,
    *,
    kind: str | None = None,
    sort: str | None = None,
    name: str | None = None,
    project: str | None = None,
    limit: int,
    as_json: bool,
) -> NoReturn:
    """Show versions, and end the command with its exit status."""
    found, failed = _versions(tracker, kind=kind, project=project, name=name)
    if sort:
        found = _ranked(found, sort)
    shown = found[:limit]
    if as_json:
        _write_json([_plain(each, sort) for each in shown])
    elif shown:
        _show_versions(shown, sort, kind, rest=len(found) - len(shown))
    elif not failed:
        Console(stderr=True).print("no artifact" + (f" of type {kind}" if kind else ""))
    raise typer.Exit(TROUBLE if failed else 0 if found else NOTHING)


def fetch_and_show(reference: str, output: Path | None, *, as_json: bool, kind: str | None = None) -> None:
    """Fetch, copy if asked, print where it is. Ends the command with its exit status if that cannot be."""
    with _troubles_told():
        from unified_tracker._fetcher import fetch_here

        found = fetch_here(reference)
        if kind is not None and found.version.type != kind:
            raise TrackerError(f"{found.version.reference} is no {kind}, its type is {found.version.type!r}")
        folder = found.folder
        if output is not None:
            if output.exists() and (not output.is_dir() or any(output.iterdir())):
                raise ConfigurationError(f"{output} exists and is not empty")
            folder = shutil.copytree(folder, output, dirs_exist_ok=True)
            for path in folder.rglob("*"):
                if path.is_file():
                    path.chmod(0o644)  # the cache's files are protected, these are the user's own
        if as_json:
            _write_json({**_plain(found.version, None), "path": str(folder.absolute())})
        else:
            sys.stdout.write(f"{folder.absolute()}\n")


# ---- inside -------------------------------------------------------------------------------------------------------


def _versions(
    tracker: Sequence[str] | None, *, kind: str | None, project: str | None, name: str | None
) -> tuple[list[ArtifactVersion], bool]:
    """What the backends hold; True if one of them could not be asked."""
    from unified_tracker._store import open_store
    from unified_tracker._versions import newest_first

    found: list[ArtifactVersion] = []
    failed = False
    try:
        names = _settings.choose(",".join(tracker) if tracker else None, _settings.read_file(Path()))
    except ConfigurationError as error:
        _stop(str(error), TROUBLE)
    for backend in names:
        try:
            found += open_store(backend).versions(type=kind, project=project, name=name)
        except (TrackerError, OSError) as error:  # noqa: PERF203 -- one backend's trouble is its own
            failed = True
            Console(stderr=True).print(Text(f"{backend}: {error}", "red"), soft_wrap=True)
    return newest_first(found), failed


def metric_of(version: ArtifactVersion, wanted: str) -> float | None:
    """The value that is meant by the name of a metric: as it is, of the validation, of the test, in that order."""
    for name in (wanted, wanted.replace(".", "/")):
        for prefix in ("", "val/", "test/"):
            if prefix + name in version.metrics:
                return version.metrics[prefix + name]
    ending = [value for key, value in sorted(version.metrics.items()) if key.endswith(f"/{wanted}")]
    return ending[0] if ending else None


def _ranked(found: list[ArtifactVersion], metric: str) -> list[ArtifactVersion]:
    """Best first; losses and errors are better when smaller; what has no such metric comes last."""
    smaller = "loss" in metric.lower() or "error" in metric.lower()

    def key(version: ArtifactVersion) -> tuple[bool, float]:
        value = metric_of(version, metric)
        return value is None, 0.0 if value is None else value if smaller else -value

    return sorted(found, key=key)


def _console() -> Console:
    """As wide as the terminal; in a file or pipe nothing is folded."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _show_versions(shown: Sequence[ArtifactVersion], sort: str | None, kind: str | None, *, rest: int) -> None:
    console = _console()
    table = Table(box=None, pad_edge=False)
    if sort:
        table.add_column(sort, no_wrap=True)
    table.add_column("artifact", no_wrap=True)
    if kind is None:
        table.add_column("type")
    for heading in ("aliases", "step", "size", "age", "backend"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "aliases")
    for each in shown:
        value = metric_of(each, sort) if sort else None
        size = each.size
        cells = [Text("-" if value is None else f"{value:.4f}")] if sort else []
        cells.append(Text(f"{each.name}:{each.version}" if each.version else each.uri))
        if kind is None:
            cells.append(Text(each.type))
        table.add_row(
            *cells,
            Text(", ".join(_told(each.aliases)), "cyan"),
            Text("" if each.step is None else str(each.step)),
            Text("" if size is None else decimal(size)),
            Text(_age(each.created_ms)),
            Text(each.backend),
        )
    console.print(table)
    if rest:
        console.print(f"{rest} more; --limit shows them")


def _told(aliases: Sequence[str]) -> list[str]:
    """Aliases that say something: not where in the training, and of the names for the best one, if it has that."""
    several = "best" in aliases
    return [alias for alias in aliases if not alias.startswith(STEPS) and not (several and alias.startswith("best-"))]


def _age(created_ms: int) -> str:
    seconds = max(0.0, time.time() - created_ms / 1000)
    for unit, length in (("d", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _plain(version: ArtifactVersion, sort: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {"reference": str(version.reference)}
    values |= {name: getattr(version, name) for name in version.__struct_fields__ if name != "files"}
    values["files"] = len(version.files)
    values["size"] = version.size
    if sort:
        values["value"] = metric_of(version, sort)
    return values


def _artifact_text(found: LineageArtifact) -> Text:
    text = Text()
    if found.role:
        text.append(f"{found.role}: ", "dim")
    text.append(found.reference, "bold")
    words = _told(found.aliases)
    if words:
        text.append(f" ({', '.join(words)})", "cyan")
    if found.digest and not found.made_by and not found.aliases:
        text.append(f" sha256 {found.digest[:12]}", "dim")
    if found.repeated:
        text.append(" (see above)", "dim")
    if found.trouble:
        text.append(f" {found.trouble}", "red")
    return text


def _run_text(run: LineageRun, word: str) -> Text:
    text = Text(f"{word} ", "dim")
    text.append(run.name or run.run_id or run.id, "green")
    place = f" in {run.project}" if run.project else ""
    text.append(f" [{run.run_id or run.id}]{place}, {run.backend}, {run.status}".rstrip(", "))
    headline = {name: value for name, value in run.metrics.items() if name.endswith("/mAP")}
    if headline:
        text.append("  " + ", ".join(f"{name} {value:.4f}" for name, value in headline.items()), "magenta")
    if run.repeated:
        text.append(" (see above)", "dim")
    return text


def _grow(tree: Tree, found: LineageArtifact) -> None:
    if found.made_by is not None:
        branch = tree.add(_run_text(found.made_by, "made by"))
        for each in found.made_by.inputs:
            _grow(branch.add(_artifact_text(each)), each)
    for run in found.used_by:
        word = "evaluated by" if run.role == "checkpoint" else f"used as {run.role} by" if run.role else "used by"
        branch = tree.add(_run_text(run, word))
        for each in run.outputs:
            _grow(branch.add(_artifact_text(each)), each)


@contextmanager
def _troubles_told() -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        _stop(str(error), TROUBLE)
    except TrackerError as error:
        _stop(str(error), NOTHING)
    except OSError as error:
        _stop(str(error), TROUBLE)


def _stop(why: str, code: int) -> NoReturn:
    Console(stderr=True).print(Text(why, "red"), soft_wrap=True)
    raise typer.Exit(code)


def _write_json(content: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")
