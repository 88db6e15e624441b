"""Reading a run back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORDS = "records.jsonl"


@dataclass
class JsonLinesRun:
    """A run as it stands in its folder.

    Attributes:
        about: Id, name, project, description, tags at the start.
        status: "RUNNING", "FINISHED", "FAILED" or "KILLED".
        metrics: Name to (step, value), in the order in which they came.
        versions: Artifact name to its versions: files (name to SHA-256), aliases, metrics, metadata, step, epoch.
        files: Names of the plain files.
        media: Name to (step, path in the run's folder).
    """

    about: dict[str, Any] = field(default_factory=dict)
    status: str = "RUNNING"
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[tuple[int | None, float]]] = field(default_factory=dict)
    versions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    media: dict[str, list[tuple[int | None, str]]] = field(default_factory=dict)


def read_run(folder: Path) -> JsonLinesRun:
    """Read the folder of one run; a torn last line is passed over."""
    run = JsonLinesRun()
    for text in (folder / RECORDS).read_bytes().split(b"\n")[:-1]:
        line = json.loads(text)
        kind, name = line["kind"], line.get("name", "")
        if kind == "run":
            run.about = {key: value for key, value in line.items() if key != "kind"}
            run.tags.update(line["tags"])
        elif kind == "status":
            run.status = line["value"]
        elif kind == "param":
            run.params[name] = line["value"]
        elif kind == "tag":
            run.tags[name] = line["value"]
        elif kind == "metric":
            run.metrics.setdefault(name, []).append((line["step"], float(line["value"])))
        elif kind == "media":
            run.media.setdefault(name, []).append((line["step"], line["file"]))
        elif kind == "file" and name not in run.files:
            run.files.append(name)
        elif kind == "artifact":
            _add_version(run.versions.setdefault(name, []), line)
    return run


def _add_version(versions: list[dict[str, Any]], line: dict[str, Any]) -> None:
    for version in versions:
        version["aliases"] = [alias for alias in version["aliases"] if alias not in line["aliases"]]
    if line["version"] < len(versions):
        same = versions[line["version"]]
        same["aliases"] = sorted({*same["aliases"], *line["aliases"]})
        same["metrics"].update(line["metrics"])
    else:
        keys = ("files", "aliases", "metrics", "metadata", "step", "epoch")
        versions.append({key: line[key] for key in keys})
