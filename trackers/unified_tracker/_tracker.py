"""What a backend implements: the `Tracker` protocol, and the `Backend` by which a plugin offers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from unified_tracker.records import Entry, Status

if TYPE_CHECKING:
    from unified_tracker._store import ArtifactStore  # knows `Backend`


class RunInfo(msgspec.Struct, frozen=True):
    """Who a run is: written once, as `run.json`, into the run directory.

    Attributes:
        id: Eight characters, lower case letters and digits; the same in every backend.
        project: MLflow experiment, W&B project; None for the backend's own default.
        name, description, tags: As given when the run was first started.
        created_ms: When, in milliseconds since the epoch.
        cwd: Working folder of the training: relative defaults (`mlflow.db`, `wandb/`) are meant from there.
        command: Command line of the training, secrets masked.
        backends: Backend name to its checked options. Holds no secrets.
    """

    id: str
    project: str | None
    name: str | None
    description: str | None
    tags: dict[str, str]
    created_ms: int
    cwd: str
    command: list[str]
    backends: dict[str, dict[str, Any]]

    def reading(self, backend: str) -> dict[str, Any]:
        """The options for reading from a backend of the run: what names no project is meant in the run's own."""
        options = self.backends.get(backend, {})
        return {**options, "project": self.project} if self.project else dict(options)


class Address(msgspec.Struct, frozen=True):
    """Where a run stands in its backend.

    Attributes:
        id: The backend's own id of the run.
        url: What a browser opens, or the path of the files.
        look: A command that shows it, when `url` alone does not.
    """

    id: str
    url: str
    look: str = ""


Level = Literal["ok", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that `unified-tracker doctor` has looked at.

    Attributes:
        check: What was looked at, in a word or two.
        level: "ok", "warning" (recording works, something may hurt), "error" (recording or delivery will not work).
        message: What was found, one sentence, without secrets.
        remedy: What mends it; "" where there is nothing to mend.
    """

    check: str
    level: Level
    message: str
    remedy: str = ""


class Tracker(Protocol):
    """An open connection to one backend, for one run.

    The uploader is the only caller, in a process of its own, one call at a time and in the order of the journal. Every
    method may block. The same records may come again after a crash: a tracker must store each of them once, and it
    decides how it recognises what it has already taken (a key of the backend, a tag, rebuilding from the start).

    Errors: `TransientError` means that the same call will be made again, for ever; `RejectedError` that these records
    will never be taken: the uploader then halves the batch until it finds the one to blame, sets it aside and goes on.
    Anything else counts as transient for a while and as rejected after that.

    A tracker may have one method more, `canary(entries: Sequence[Entry]) -> None`, asked when the same records fail
    again and again with `TransientError.suspect`: write something small that the backend is known to take, of the same
    kind as `entries` if there are any, and raise if it is not taken or nothing of the kind is known.

    It may also have `log_predictions(entry: Entry, report: PredictionReport) -> None`, to store an evaluation of the
    sample images in the backend's own way; without it `log_artifact` is given the page and the data as files.

    It may also have `log_input(entry: Entry) -> None`, to store an `Input` record where the backend shows what a run
    was made from; without it `set_tags` is given a tag "unified_tracker.input.<16 hex digits>", the record as JSON.

    It may also have an attribute `needs_files`, true where what it has stored refers to the files that it was given:
    they stay in the run directory then. Read before `open`, as `rebuilds` is, which implies it.

    It may also have an attribute `notes`, a sequence of sentences: each is shown to the user once.

    Attributes:
        rebuilds: True for a backend that is written anew each time (a file that must be whole): the journal is then
            given from its start, whatever was held before. False: from behind the last record held.
    """

    rebuilds: bool

    def open(self, run: RunInfo) -> Address:
        """Create the run, or find it if it exists already. Called once, first, and again after a crash."""

    def log_metrics(self, entries: Sequence[Entry]) -> None:
        """Store `Metrics` records. A NaN or infinity is stored as it is or as the nearest thing the backend has."""

    def log_params(self, entries: Sequence[Entry]) -> None:
        """Store `Params` records. A parameter that has another value already is kept; the change is recorded."""

    def set_tags(self, entries: Sequence[Entry]) -> None:
        """Store `Tags` records; the last value of a key wins."""

    def log_media(self, entry: Entry, file: Path) -> None:
        """Store one `Media` record, whose content is in `file`."""

    def log_artifact(self, entry: Entry, files: Mapping[str, Path]) -> None:
        """Store one `Artifact` record. `files` maps the name inside the artifact to where the bytes are."""

    def held(self) -> int:
        """Sequence number up to which the backend is known to hold everything; 0 if nothing is certain yet.

        The uploader starts behind this record after a crash. A tracker that can only vouch for a run as a whole
        returns 0 until `close` has succeeded and is given everything again.
        """

    def close(self, status: Status, ended_ms: int) -> None:
        """End the run with this status. When it returns, the backend holds everything."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What a plugin's `tracker_backend` hook returns. Building it must import neither SDK nor framework.

    Attributes:
        name: What users type; equal to the name of the entry point.
        check: Takes the user's options, returns them completed and JSON-compatible, without secrets. Called in the
            training process, before training; raises `ConfigurationError` for an unknown option or a wrong value.
        create: Makes the tracker, in the uploader's process. Takes the run, its directory, and the checked options.
        requires: Import names that must be there for `create`.
        install: The command that brings them.
        diagnose: Looks, for `unified-tracker doctor`, at what delivery with checked options needs: server, credentials,
            folders. May take a few seconds, imports no client.
        going_online: For a backend whose option `mode` is "offline" when it records on this machine alone. Takes the
            run directory and the options; a context manager that gives the options for delivery to the server. In it
            the lane is set back to the start of the journal; on leaving, whatever could deliver the run a second time
            is put out of action. Raises `ConfigurationError` where something would stand twice.
        store: Opens, with checked options, what the backend holds for reading. Imports the client; called by commands
            and by the helper process that fetches artifacts.
    """

    name: str
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    create: Callable[[RunInfo, Path, Mapping[str, Any]], Tracker]
    requires: tuple[str, ...] = ()
    install: str = ""
    diagnose: Callable[[Mapping[str, Any]], list[Finding]] | None = None
    going_online: Callable[[Path, Mapping[str, Any]], AbstractContextManager[dict[str, Any]]] | None = None
    store: Callable[[Mapping[str, Any]], ArtifactStore] | None = None
