"""The tracker: one file `records.jsonl` and the folders `artifacts/`, `files/`, `media/` for a run.

How it recognises what it has already taken. Every value is one line, and every line carries the sequence number of the
record that it comes from. Records come in order, so all that stands before the last sequence number in the file is
complete; of the last one itself, which a crash may have cut short, the pairs of kind and name are remembered. A line
that the crash has torn is cut off when the file is opened. Files are complete before the line that names them is
written, and a version of an artifact is recognised by its digest.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from unified_tracker import Address, RejectedError, RunInfo, TransientError
from unified_tracker.records import Entry
from unified_tracker_jsonlines.reading import RECORDS

Call = TypeVar("Call", bound=Callable[..., Any])
REFUSALS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOENT, errno.EISDIR}  # no later try will help


def sorted_errors(method: Call) -> Call:
    """A method whose file-system errors are `TransientError` (disk full, ...) or `RejectedError` (impossible name)."""

    @functools.wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            kind = RejectedError if error.errno in REFUSALS else TransientError
            raise kind(f"{type(error).__name__}: {error}") from error

    return checked  # type: ignore[return-value]


class JsonLinesTracker:
    """Implements `unified_tracker.Tracker`: one call at a time, may block, must not store anything twice."""

    rebuilds = False  # what is there is gone on with, not written anew

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / RECORDS
        self._last = 0
        self._at_last: set[tuple[str, str]] = set()
        self._params: dict[str, Any] = {}
        self._versions: dict[str, list[str]] = {}

    @sorted_errors
    def open(self, run: RunInfo) -> Address:
        """Read what is there; write who the run is."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for line in self._mended():
            self._remember(line)
        about = {"name": run.name, "project": run.project, "description": run.description, "tags": run.tags}
        self._write([{"kind": "run", "id": run.id, **about}, {"kind": "status", "value": "RUNNING"}])
        return Address(run.id, str(self._folder), f"less {self._path}")

    @sorted_errors
    def log_metrics(self, entries: Sequence[Entry]) -> None:
        """A line for each value. JSON has no NaN and no infinity: they are written as strings."""
        self._store(
            (entry.sequence, {"kind": "metric", "name": name, "step": entry.record.step, "value": _json(value)})
            for entry in entries
            for name, value in entry.record.values.items()
        )

    @sorted_errors
    def log_params(self, entries: Sequence[Entry]) -> None:
        """A line for each parameter, with a dotted name; another value for a known one is a line `param_changed`."""

        def lines() -> Iterator[tuple[int, dict[str, Any]]]:
            for entry in entries:
                for name, value in _flat(entry.record.values):
                    known = self._params.setdefault(name, value)
                    kind = "param" if known == value else "param_changed"
                    yield entry.sequence, {"kind": kind, "name": name, "value": value}

        self._store(lines())

    @sorted_errors
    def set_tags(self, entries: Sequence[Entry]) -> None:
        """A line for each tag; the reader lets the last one win."""
        self._store(
            (entry.sequence, {"kind": "tag", "name": name, "value": value})
            for entry in entries
            for name, value in entry.record.values.items()
        )

    @sorted_errors
    def log_media(self, entry: Entry, file: Path) -> None:
        """The file as it was staged (a picture is a `.npy` array), under a name that is the same for every try."""
        record = entry.record
        target = self._folder / "media" / quote(record.name, safe="") / f"{record.step}-{entry.sequence}{file.suffix}"
        self._copy(file, target)
        place = target.relative_to(self._folder).as_posix()
        self._store([(entry.sequence, {"kind": "media", "name": record.name, "step": record.step, "file": place})])

    @sorted_errors
    def log_artifact(self, entry: Entry, files: Mapping[str, Path]) -> None:
        """Plain files under their names; a versioned artifact as `artifacts/<name>/v<k>`, once for each content."""
        record = entry.record
        digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        if record.name is None:
            for name, path in files.items():
                self._copy(path, _inside(self._folder / "files", name))
            self._store([(entry.sequence, {"kind": "file", "name": name}) for name in files])
            return
        digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        versions = self._versions.setdefault(record.name, [])
        if digest not in versions:
            target = self._folder / "artifacts" / quote(record.name, safe="") / f"v{len(versions)}"
            shutil.rmtree(target, ignore_errors=True)  # a crash came between the files and their line
            for name, path in files.items():
                self._copy(path, _inside(target, name))
        line = {
            "kind": "artifact",
            "name": record.name,
            "type": record.type,
            "version": versions.index(digest) if digest in versions else len(versions),
            "digest": digest,
            "files": digests,
            "aliases": sorted({"latest", *record.aliases}),
            "metadata": record.metadata,
            "metrics": {name: _json(value) for name, value in record.metrics.items()},
            "step": record.step,
            "epoch": record.epoch,
        }
        self._store([(entry.sequence, line)])

    def held(self) -> int:
        """Every call returns after `fsync`, so what was handed over is held."""
        return self._last

    @sorted_errors
    def close(self, status: str, ended_ms: int) -> None:
        """The last status line counts: closing again changes nothing."""
        self._write([{"kind": "status", "value": status, "ended_ms": ended_ms}])

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _store(self, lines: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Write the lines that are not there yet, then remember them."""
        new = [{"sequence": sequence, **line} for sequence, line in lines if not self._known(sequence, line)]
        self._write(new)
        for line in new:
            self._remember(line)

    def _known(self, sequence: int, line: Mapping[str, Any]) -> bool:
        return sequence < self._last or (sequence == self._last and (line["kind"], line["name"]) in self._at_last)

    def _remember(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "param":
            self._params[line["name"]] = line["value"]
        elif line["kind"] == "artifact":
            versions = self._versions.setdefault(line["name"], [])
            if line["version"] == len(versions):
                versions.append(line["digest"])
        sequence = line.get("sequence", 0)
        if sequence > self._last:
            self._last, self._at_last = sequence, set()
        if sequence == self._last:
            self._at_last.add((line["kind"], line.get("name", "")))

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        with self._path.open("a", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _mended(self) -> Iterator[Mapping[str, Any]]:
        """The whole lines of the file; what follows the last one is cut off."""
        with contextlib.suppress(FileNotFoundError):
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(self._path, len(whole))
            for line in whole.splitlines():
                yield json.loads(line)

    def _copy(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f".{target.name}.half")
        shutil.copyfile(source, half)
        os.replace(half, target)


def _inside(folder: Path, name: str) -> Path:
    """Where a file of that name stands in a folder; never outside of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise RejectedError(f"{name!r} leads out of the artifact")
    return folder / path


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(float(value))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
