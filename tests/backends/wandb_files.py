"""Reading W&B's offline files back: an own reader of the record log, for tests only.

A `.wandb` file is a 7-byte header (":W&B", u16 0xBEE1, version 0) and blocks of 32 KiB (the first one 7 bytes short)
of chunks: crc32 u32, length u16, kind u8 (1 whole, 2 first, 3 middle, 4 last), payload. A payload, put together, is a
protobuf `Record`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from wandb.proto import wandb_internal_pb2 as proto

HEADER: Final = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
CHUNK: Final = struct.Struct("<IHB")
BLOCK: Final = 32768


class DamagedFileError(Exception):
    """The file ends within a record, or a checksum does not match."""


@dataclass
class OfflineArtifact:
    """A version of an artifact as it was logged."""

    name: str
    type: str
    digest: str
    aliases: list[str]
    metadata: dict[str, Any]
    files: dict[str, Path]  # name in the artifact -> where the bytes are


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
    for record in records(path):
        _take(run, record)
    return run


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a `.wandb` file."""
    for payload in _payloads(path.read_bytes()):
        record = proto.Record()
        record.ParseFromString(payload)
        yield record


def _payloads(data: bytes) -> Iterator[bytes]:
    if data[: len(HEADER)] != HEADER:
        raise DamagedFileError(f"no W&B header: {data[:7]!r}")
    at, parts = len(HEADER), []
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < CHUNK.size:
            at += left
            continue
        if at + CHUNK.size > len(data):
            raise DamagedFileError("the file ends within a header")
        checksum, length, kind = CHUNK.unpack_from(data, at)
        end = at + CHUNK.size + length
        if end > len(data) or zlib.crc32(data[at + 6 : end]) != checksum:
            raise DamagedFileError(f"chunk at {at} is damaged")
        parts.append(data[at + CHUNK.size : end])
        at = end
        if kind in {1, 4}:
            yield b"".join(parts)
            parts = []
    if parts:
        raise DamagedFileError("the file ends within a record")


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
        {entry.path: Path(entry.local_path) for entry in content.manifest.contents},
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
