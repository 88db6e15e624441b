"""What this machine has recorded offline for W&B: versions of artifacts, and what runs were made from.

Offline nobody can be asked, and W&B's own files of an offline run cannot be searched. So the lane notes each version
that it records: a small JSON file a collection and a run, in the user's state folder. The bytes stay where they are,
in the run directory. Losing the folder costs nothing but finding versions by name: delivering a run again fills it.

Imports no wandb.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from filelock import FileLock

from unified_tracker._rundir import write_json
from unified_tracker.records import Input

WAIT_S: Final = 30.0  # for another lane, which holds a collection for as long as one small file takes
S = TypeVar("S", bound=msgspec.Struct)


class KeptFile(msgspec.Struct, frozen=True):
    """A file where the run keeps it. Size and time are those of the moment when it was hashed."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


class Logged(msgspec.Struct, frozen=True):
    """One record of one run that logged a version.

    Attributes:
        run, run_id: W&B's id of the run, and ours.
        run_dir, host: Where its files are, and on which machine that path means it.
        sequence: Of the record: it is known by it when it comes again.
        online: The run has been delivered to a server since.
    """

    run: str
    run_id: str
    run_dir: str
    host: str
    sequence: int
    ts: int
    files: dict[str, KeptFile]
    aliases: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    step: int | None = None
    epoch: float | None = None
    online: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What tells records apart."""
        return self.run_id, self.sequence

    @property
    def order(self) -> tuple[int, int]:
        """When it was logged."""
        return self.ts, self.sequence

    def is_there(self) -> bool:
        """Whether the run directory can be seen from here."""
        return (Path(self.run_dir) / "run.json").is_file()


class KeptVersion(msgspec.Struct, frozen=True):
    """One version: the records that logged this content.

    Attributes:
        digest: W&B's, of the manifest: the same once it is on a server.
        deleted: It stays as a mark, so that its number and a record that comes again do not bring it back.
    """

    number: int
    digest: str
    logged: tuple[Logged, ...]
    deleted: bool = False

    @property
    def first(self) -> Logged:
        """The record that made it."""
        return min(self.logged, key=lambda each: each.order)

    @property
    def last(self) -> Logged:
        """The record that says what it means now."""
        return max(self.logged, key=lambda each: each.order)


class Collection(msgspec.Struct, frozen=True):
    """All versions of a name in a project."""

    entity: str
    project: str
    name: str
    type: str
    versions: tuple[KeptVersion, ...] = ()

    @property
    def place(self) -> str:
        """As users write it: "entity/project", or "project"."""
        return f"{self.entity}/{self.project}" if self.entity else self.project

    def aliases(self) -> dict[str, int]:
        """Alias to the number of its version. The latest record that names it decides; "latest" never dangles."""
        owners: dict[str, tuple[tuple[int, int], KeptVersion]] = {}
        for version in self.versions:
            for each in version.logged:
                for alias in (*each.aliases, *(() if version.deleted else ("latest",))):
                    if alias not in owners or owners[alias][0] < each.order:
                        owners[alias] = each.order, version
        return {alias: version.number for alias, (_, version) in owners.items() if not version.deleted}

    def with_record(self, record: Logged, digest: str) -> Collection:
        """The collection once a record is known: a new version, or another record of one that is there."""
        versions = list(self.versions)
        for place, version in enumerate(versions):
            known = [each for each in version.logged if each.key != record.key]
            if len(known) < len(version.logged):  # it comes again, perhaps from another folder
                if version.digest == digest or version.deleted:
                    versions[place] = msgspec.structs.replace(version, logged=(*known, record))
                    return msgspec.structs.replace(self, versions=tuple(versions))
                versions[place] = msgspec.structs.replace(version, logged=tuple(known))
        for place, version in enumerate(versions):
            if version.digest == digest and not version.deleted and version.logged:
                versions[place] = msgspec.structs.replace(version, logged=(*version.logged, record))
                break
        else:
            number = max((version.number for version in versions), default=-1) + 1
            versions.append(KeptVersion(number, digest, (record,)))
        return msgspec.structs.replace(self, versions=tuple(version for version in versions if version.logged))


class KeptRun(msgspec.Struct, frozen=True):
    """A run, and what it was made from."""

    run: str
    run_id: str
    entity: str
    project: str
    name: str
    created_ms: int
    run_dir: str
    host: str
    inputs: tuple[Input, ...] = ()


class Index:
    """The folder. Readers take no lock: a file is replaced in one step."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open it.

        Raises:
            OSError, RuntimeError, KeyError: This user has no home.
        """
        if folder is None:
            from platformdirs import user_state_path  # 15 ms: not at import

            folder = user_state_path("unified-tracker", appauthor=False) / "artifacts" / "wandb"
        self._versions, self._runs = folder / "versions", folder / "runs"

    def collections(self) -> Iterator[Collection]:
        """Every collection that can be read."""
        yield from _all(self._versions, Collection)

    def runs(self) -> Iterator[KeptRun]:
        """Every run that can be read."""
        yield from _all(self._runs, KeptRun)

    def add(self, collection: Collection, record: Logged, digest: str) -> None:
        """Note that a record has logged this content. A second time nothing changes.

        Args:
            collection: Which; what versions it has is looked up.
            record: The record.
            digest: W&B's, of the content.

        Raises:
            OSError: The folder cannot be written, or another process holds the collection (`filelock.Timeout`).
        """
        file = self._file(collection)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{file}.lock", timeout=WAIT_S):
            known = _read(file, Collection) or msgspec.structs.replace(collection, versions=())
            changed = known.with_record(record, digest)
            if changed != known:
                write_json(file, changed)

    def known(self, collection: Collection, key: tuple[str, int]) -> Logged | None:
        """A record that has been noted before."""
        found = _read(self._file(collection), Collection)
        records = [each for version in found.versions for each in version.logged] if found else []
        return next((each for each in records if each.key == key), None)

    def remove(self, collection: Collection, number: int) -> None:
        """Forget a version. What keeps its bytes is left alone.

        Raises:
            OSError: As `add`.
        """
        file = self._file(collection)
        with FileLock(f"{file}.lock", timeout=WAIT_S):
            known = _read(file, Collection) or collection
            versions = tuple(
                msgspec.structs.replace(version, deleted=True) if version.number == number else version
                for version in known.versions
            )
            write_json(file, msgspec.structs.replace(known, versions=versions))

    def put_run(self, run: KeptRun) -> None:
        """Note a run as it is now.

        Raises:
            OSError: The folder cannot be written.
        """
        self._runs.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(self._runs / f"{_short(run.run_id, run.run_dir)}.json", run)

    def went_online(self, run_dir: Path) -> None:
        """A run is delivered to a server from now on: its versions are to be looked for there.

        Raises:
            OSError: As `add`.
        """
        place = str(run_dir.resolve())
        for run in list(self.runs()):
            if run.run_dir == place:
                (self._runs / f"{_short(run.run_id, run.run_dir)}.json").unlink(missing_ok=True)
        for collection in list(self.collections()):
            if not any(each.run_dir == place for version in collection.versions for each in version.logged):
                continue
            file = self._file(collection)
            with FileLock(f"{file}.lock", timeout=WAIT_S):
                known = _read(file, Collection) or collection
                versions = tuple(_marked(version, place) for version in known.versions)
                write_json(file, msgspec.structs.replace(known, versions=versions))

    def _file(self, collection: Collection) -> Path:
        return self._versions / f"{_short(collection.name, collection.entity, collection.project)}.json"


def here() -> str:
    """The name of this machine."""
    return platform.node()


def _marked(version: KeptVersion, run_dir: str) -> KeptVersion:
    logged: Sequence[Logged] = [
        msgspec.structs.replace(each, online=True) if each.run_dir == run_dir else each for each in version.logged
    ]
    return msgspec.structs.replace(version, logged=tuple(logged))


def _all(folder: Path, kind: type[S]) -> Iterator[S]:
    try:
        files = sorted(folder.glob("*.json"))
    except OSError:
        return
    for file in files:
        found = _read(file, kind)
        if found is not None:
            yield found


def _read(file: Path, kind: type[S]) -> S | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None  # not there yet, or written by another version


def _short(name: str, *more: str) -> str:
    """The same file name for the same things; readable by its beginning."""
    text = "\n".join((name, *more))
    digest = hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()
    return f"{name[:60]}-{digest}"
