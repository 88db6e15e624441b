"""Reading W&B's offline runs back, for tests: what their records say, put together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unified_tracker.demo._wandb_files import offline_records


@dataclass
class OfflineArtifact:
    """A version of an artifact as it was logged."""

    name: str
    type: str
    digest: str
    aliases: list[str]
    metadata: dict[str, Any]
    files: dict[str, Path]  # name in the artifact -> where the bytes are
    references: dict[str, tuple[str, str]] = field(default_factory=dict)  # to other artifacts: address, digest
    digests: dict[str, str] = field(default_factory=dict)


@dataclass
class OfflineRun:
    """An offline run as its file tells it. `exit_code` is None if it has no end."""

    id: str = ""
    project: str = ""
    name: str = ""
    notes: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)  # metric or glob -> its step metric
    artifacts: list[OfflineArtifact] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    runs: int = 0
    exit_code: int | None = None

    def column(self, name: str) -> list[Any]:
        """The values of one metric, in order."""
        return [row[name] for row in self.rows if name in row]


def offline_folders(folder: Path) -> list[Path]:
    """Every offline run below a folder."""
    return sorted(path for path in folder.rglob("offline-run-*") if path.is_dir() and not path.is_symlink())


def read_run(folder: Path) -> OfflineRun:
    """Read one offline run.

    Raises:
        DamagedFileError: The file was cut short.
    """
    (path,) = folder.glob("*.wandb")
    run = OfflineRun()
    for record in offline_records(path):
        _take(run, record)
    return run


def _take(run: OfflineRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    content = getattr(record, kind)
    if kind == "run":
        run.runs += 1
        run.id, run.project, run.name = content.run_id, content.project, content.display_name
        run.notes, run.group, run.tags = content.notes, content.run_group, list(content.tags)
        _set(run.config, content.config.update)
    elif kind == "config":
        _set(run.config, content.update)
    elif kind == "summary":
        _set(run.summary, content.update)
    elif kind == "history":
        row: dict[str, Any] = {}
        _set(row, content.item)
        run.rows.append({**row, "_step": content.step.num})
    elif kind == "metric":
        run.axes[content.name or content.glob_name] = content.step_metric
    elif kind == "artifact":
        run.artifacts.append(_artifact(content))
    elif kind == "files":
        run.saved += [item.path for item in content.files]
    elif kind == "exit":
        run.exit_code = content.exit_code


def _artifact(content: Any) -> OfflineArtifact:
    return OfflineArtifact(
        content.name,
        content.type,
        content.digest,
        list(content.aliases),
        json.loads(content.metadata or "{}"),
        {entry.path: Path(entry.local_path) for entry in content.manifest.contents if not entry.ref},
        {entry.path: (entry.ref, entry.digest) for entry in content.manifest.contents if entry.ref},
        {entry.path: entry.digest for entry in content.manifest.contents},
    )


def _set(target: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        path = list(item.nested_key) or [item.key]
        inner = target
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = _value(item)


def _value(item: Any) -> Any:
    kind = item.WhichOneof("value") if "value" in item.DESCRIPTOR.oneofs_by_name else None
    if kind is None:
        return json.loads(item.value_json)
    value = getattr(item, kind)
    return None if kind == "none" else json.loads(value) if kind == "json" else value
