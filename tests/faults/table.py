"""A pytest plugin (`-p tests.faults.table`): a Markdown table of what was provoked, how often, and the result."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

COUNTS = ("SEEDS", "ROWS", "KILLS", "ROUNDS")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    path = os.environ.get("FAULTS_TABLE")
    if not path:
        return
    found: dict[str, dict[str, list[float]]] = {}
    for result in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(result, []):
            if result == "error" or report.when == "call":
                name, _, _ = report.nodeid.partition("[")
                found.setdefault(name, {}).setdefault(result, []).append(report.duration)
    Path(path).write_text(_text(found), encoding="utf-8")


def _text(found: dict[str, dict[str, list[float]]]) -> str:
    given = [f"{name.lower()} {os.environ[f'FAULTS_{name}']}" for name in COUNTS if f"FAULTS_{name}" in os.environ]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("mlflow", "wandb"))
    counts = ", ".join(given) or "the counts of the test command"
    lines = [
        "# What was provoked, and what happened",
        "",
        f"Written by `nox -s faults`: Python {platform.python_version()}, {versions}; {counts}.",
        "Every row is a test: its name is the promise; its runs are what varies: kinds of faults, victims, seeds.",
    ]
    chapter = None
    for name, results in sorted(found.items()):
        file, _, test = name.partition("::")
        if file != chapter:
            chapter = file
            lines += ["", f"## `{file}`", "", "| promise | runs | held | seconds |", "|---|---:|---:|---:|"]
        runs = sum(map(len, results.values()))
        seconds = sum(map(sum, results.values()))
        words = test.removeprefix("test_").replace("_", " ")
        lines.append(f"| {words} | {runs} | {len(results.get('passed', []))} | {seconds:.1f} |")
    return "\n".join(lines) + "\n"
