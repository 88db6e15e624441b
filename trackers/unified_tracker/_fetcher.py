"""The helper process that fetches: it imports the backend's client, so that the training need not.

A wish on standard input, an answer as the last line of standard output, a progress bar on standard error. Commands use
`fetch_here` in their own process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from unified_tracker._cache import Cache, Progress
from unified_tracker._errors import ConfigurationError, TrackerError
from unified_tracker._fetching import Answer, Fetched, Wish
from unified_tracker._reference import parse
from unified_tracker._store import open_store
from unified_tracker._versions import ArtifactVersion


def fetch_here(text: str, options: Mapping[str, Any] | None = None, *, checked: bool = False) -> Fetched:
    """Fetch in this process, which imports the backend's client: the helper, or a command.

    Raises:
        ConfigurationError, TrackerError: As `fetch`.
    """
    reference = parse(text)
    if reference is None:
        raise ConfigurationError(f"{text!r} is no artifact reference")
    store = open_store(reference.backend, options, checked=checked)
    version = store.find(reference)
    cache = Cache()
    with _progress_bar(version) as progress:
        path = cache.get(version, lambda name, target: store.download(version, name, target), progress)
    return Fetched(str(reference), version, str(path))


@contextmanager
def _progress_bar(version: ArtifactVersion) -> Iterator[Progress]:
    """A bar on standard error, if that is a terminal and something is fetched."""
    console = Console(stderr=True)
    with RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(f"fetching {version.name}:{version.version}", total=len(version.files), visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _main() -> int:
    """The helper process: a wish on standard input, an answer as the last line of standard output."""
    wish = msgspec.json.decode(sys.stdin.buffer.read(), type=Wish)
    try:
        answer = Answer(fetch_here(wish.text, wish.options, checked=wish.checked))
    except ConfigurationError as error:
        answer = Answer(error=str(error), configuration=True)
    except (TrackerError, OSError) as error:
        answer = Answer(error=str(error))
    except Exception as error:  # noqa: BLE001 -- a client may raise anything
        answer = Answer(error=f"{wish.text} cannot be fetched: {type(error).__name__}: {error}")
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
