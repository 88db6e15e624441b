"""The journal's records: one typed struct for each kind of thing that a run can say.

Public for the authors of backends: these are what a `Tracker` is given. A record is immutable and says what happened,
not what a backend should do about it. Files are named by `StagedFile`, never embedded. Encoded as msgpack arrays
(msgspec), the tag first.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

__all__ = [
    "Artifact",
    "Entry",
    "Finished",
    "Input",
    "Loss",
    "Media",
    "Metrics",
    "Number",
    "Params",
    "Position",
    "Predictions",
    "Record",
    "StagedFile",
    "Started",
    "Status",
    "Tags",
]

Status = Literal["FINISHED", "FAILED", "KILLED"]
Number = int | float


class _Struct(msgspec.Struct, frozen=True, array_like=True, tag_field="kind"):
    pass


class StagedFile(msgspec.Struct, frozen=True, array_like=True):
    """A file whose bytes the run has taken responsibility for.

    Attributes:
        path: Name inside the artifact, POSIX, relative.
        staged: Where the bytes are: relative to the run directory, or absolute for a file that is delivered in place.
        size: Bytes at the time of logging.
        mtime_ns: Modification time at the time of logging; a change until delivery means that the bytes are others.
    """

    path: str
    staged: str
    size: int
    mtime_ns: int


class Started(_Struct, frozen=True, tag="start"):
    """An attempt began: the first one, or one that resumes the run.

    Attributes:
        ts: Milliseconds since the epoch, like every `ts`.
        attempt: 1 for the first process that writes to this run.
        pid: Process that trains.
        name, description, tags: As given to `start_run`; the latest attempt's win.
    """

    ts: int
    attempt: int
    pid: int
    name: str | None
    description: str | None
    tags: dict[str, str]


class Metrics(_Struct, frozen=True, tag="metrics"):
    """Scalars of one step.

    Attributes:
        step: Completed optimiser iterations, int64; None if the caller's was no integer (see `bad_step`).
        values: Name to value; NaN and infinities are kept.
        bad_step: What the caller gave instead of an integer.
    """

    ts: int
    step: int | None
    values: dict[str, Number]
    bad_step: str | None = None


class Params(_Struct, frozen=True, tag="params"):
    """Parameters, nested as the caller nested them, with secrets already masked."""

    ts: int
    values: dict[str, Any]


class Tags(_Struct, frozen=True, tag="tags"):
    """Tags; the last value of a key wins."""

    ts: int
    values: dict[str, str]


class Media(_Struct, frozen=True, tag="media"):
    """A picture, text, table or figure at a step.

    Attributes:
        form: How `file` is to be read: "array" (.npy, uint8, RGB), "text", "table" (JSON: columns, rows),
            "figure" (PNG, or HTML by its suffix).
    """

    ts: int
    form: Literal["array", "text", "table", "figure"]
    name: str
    step: int | None
    file: StagedFile
    caption: str | None = None


class Artifact(_Struct, frozen=True, tag="artifact"):
    """Files that belong together: a versioned artifact, or with `name` None plain files of the run.

    Attributes:
        type: "model", "dataset", "result", or the caller's own word.
        aliases: Names that move to this version ("latest" is implied).
        metrics: Metrics of exactly this version (checkpoints).
        step, epoch: Where in the training it was made.
        keep_last: How many versions the backend keeps beside those that something needs; 0 for all of them.
        keep_every: Keep also those whose step is a multiple of this; 0 for none of them.
    """

    ts: int
    name: str | None
    type: str
    files: tuple[StagedFile, ...]
    aliases: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    metrics: dict[str, Number] = {}
    step: int | None = None
    epoch: float | None = None
    keep_last: int = 0
    keep_every: int = 0


class Predictions(_Struct, frozen=True, tag="predictions"):
    """What a model said about a sample of validation images, in one evaluation.

    Attributes:
        step, epoch: Where in the training.
        split: "val" or "test".
        dataset: Name of the data set; the sample is the artifact `<dataset>-val`.
        sample: The images and what is true about them; the same file for every evaluation until its content changes.
        file: The predictions. Both are read by `unified_tracker.predictions`; a tracker is given what comes of them.
        aliases: Names that move to this version of `run-<run id>-predictions` ("latest" is implied).
        images: How many the sample has: by this the uploader knows how long it may take.
    """

    ts: int
    step: int | None
    epoch: float | None
    split: str
    dataset: str
    sample: StagedFile
    file: StagedFile
    aliases: tuple[str, ...] = ()
    images: int = 0


class Input(_Struct, frozen=True, tag="input"):
    """Something that the run was made from, or that it evaluates.

    Attributes:
        role: "weights" (a training starts from them), "checkpoint" (it is evaluated), "train", "val", "test", or the
            caller's own word. A later record with the same role and reference adds to the earlier one.
        type: "model", "dataset", ...
        reference: As the user wrote it: an artifact reference, a URL, a path.
        name, version: Of the artifact; of anything else the file name, and "".
        digest: Of the content; "" where `file` is to be hashed by the lane.
        backend: That holds it; "" for what no backend holds.
        uri: That backend's own name of exactly this version.
        run: That backend's id of the run that made it.
        file: What no backend holds: a file that is read in place.
        metadata: What is known about it.
        metrics: What an evaluation has found of it, at `step`.
    """

    ts: int
    role: str
    type: str
    reference: str
    name: str
    version: str = ""
    digest: str = ""
    backend: str = ""
    uri: str = ""
    run: str = ""
    file: StagedFile | None = None
    metadata: dict[str, Any] = {}
    metrics: dict[str, Number] = {}
    step: int | None = None


class Loss(_Struct, frozen=True, tag="loss"):
    """Records that could not be written (disk full): how many, and the first error."""

    ts: int
    count: int
    error: str


class Finished(_Struct, frozen=True, tag="finish"):
    """The attempt ended."""

    ts: int
    status: Status
    reason: str | None = None


Record = Started | Metrics | Params | Tags | Media | Artifact | Predictions | Input | Loss | Finished


class Position(NamedTuple):
    """A place in the journal, between two records: segment file name and byte offset. Ordered as the journal is."""

    segment: str = ""
    offset: int = 0


class Entry(NamedTuple):
    """A record as the journal's reader hands it out.

    Attributes:
        sequence: Strictly increasing over the life of the run; the identity of the record.
        record: What was logged.
        end: Where the next record begins.
    """

    sequence: int
    record: Record
    end: Position
