"""JSON lines as a backend of unified-tracker: a file and a folder for each run, read by `read_run`."""

from __future__ import annotations

from unified_tracker_jsonlines.reading import JsonLinesRun, read_run

__all__ = ["JsonLinesRun", "read_run"]
