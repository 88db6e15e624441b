"""Finding a recorded evaluation: from what a person has (a run directory, a page, an artifact's name) to its page."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from unified_tracker._errors import TrackerError
from unified_tracker._reference import parse
from unified_tracker._rundir import PARENT

PAGE: Final = "index.html"
PLACES: Final = (f"predictions/{PAGE}", PAGE)
BELOW: Final = (f"{PARENT}/*/predictions/{PAGE}", f"*/predictions/{PAGE}")


def find_page(target: str, scratch: Path) -> Path:
    """The page of predictions behind a target.

    Args:
        target: A page; a folder that has one (a run directory, a downloaded artifact); a work folder with runs below,
            of which the latest is meant; or an artifact reference.
        scratch: An existing folder, for what must be downloaded.

    Raises:
        ConfigurationError: A reference names no backend that is installed.
        TrackerError: There is no page, or a downloaded one is none of ours.
    """
    if parse(target) is not None:
        from unified_tracker._fetcher import fetch_here  # imports the backend's client

        return _written_anew(_page_in(target, fetch_here(target).folder), scratch)
    return _page_in(target, Path(target))


def _written_anew(page: Path, scratch: Path) -> Path:
    """A page from elsewhere with our own scripts: what it shows is taken over, what it would run is not."""
    from unified_tracker.predictions._page import read_page, write_page  # NumPy

    own = scratch / PAGE
    write_page(read_page(page), own)
    return own


def _page_in(target: str, place: Path) -> Path:
    if place.is_file():
        return place
    for name in PLACES:
        if (place / name).is_file():
            return place / name
    below = sorted((path for pattern in BELOW for path in place.glob(pattern)), key=lambda path: path.stat().st_mtime)
    if not below:
        where = "is neither a file nor a folder" if not place.exists() else f"holds no page of predictions ({PAGE})"
        raise TrackerError(f"{target} {where}")
    return below[-1]
