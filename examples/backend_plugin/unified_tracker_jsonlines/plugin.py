"""The door: what unified-tracker finds through the entry point. Imported in the training process, so it is light."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_tracker import Backend, ConfigurationError, RunInfo, Tracker
from unified_tracker.hookspecs import hookimpl


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the options: `path`, the folder of all runs, default `jsonlines` in the working folder."""
    for key in options:
        if key != "path":
            raise ConfigurationError(f"options of 'jsonlines': unknown option {key!r}; known: path")
    return {"path": str(Path(options.get("path") or "jsonlines").absolute())}


def create(run: RunInfo, run_dir: Path, options: Mapping[str, Any]) -> Tracker:
    """Make the tracker, in the uploader's process: whatever is heavy is imported here."""
    from unified_tracker_jsonlines.tracker import JsonLinesTracker

    return JsonLinesTracker(Path(options["path"]) / run.id)


@hookimpl
def tracker_backend() -> Backend:
    """Offer JSON lines."""
    return Backend(name="jsonlines", check=check, create=create)
