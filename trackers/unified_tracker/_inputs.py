"""Inputs of a run, as the lane completes them: digests, what a data set holds, and what should not be.

All of it reads files, some of them large: it happens in the lane's process, never where a training waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from unified_tracker._digest import file_digest
from unified_tracker._journal import ATTEMPT_SHIFT
from unified_tracker._rundir import RunDirectory, write_bytes
from unified_tracker._staging import changed, locate
from unified_tracker.records import Entry, Input, StagedFile

MEMORY: Final = "inputs.json"  # in the run directory
LARGEST: Final = 1 << 30  # bytes of an annotation file that is looked into
SHOWN: Final = 3
TAG: Final = "unified_tracker.input."
FOLDER: Final = "folder"  # in the metadata of a record: where an artifact's files are


class _Image(msgspec.Struct):
    file_name: str = ""


class _Annotation(msgspec.Struct):
    category_id: int | None = None


class _Category(msgspec.Struct):
    id: int
    name: str = ""


class _Coco(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation] = []
    categories: list[_Category] = []


class _File(msgspec.Struct):
    size: int
    sha256: str


class _Description(msgspec.Struct):
    """The part of an artifact's `dataset.json` that tells images apart."""

    files: dict[str, _File] = {}


class Known(msgspec.Struct):
    """What is remembered of an input: by it the next one is compared."""

    attempt: int
    role: str
    name: str
    digest: str
    file: str = ""
    images: str = ""
    folder: str = ""


class Completed(NamedTuple):
    """An input that says everything.

    Attributes:
        entry: With the record completed.
        warnings: Tag to a sentence about what is wrong.
    """

    entry: Entry
    warnings: dict[str, str]


def identity(record: Input) -> str:
    """16 hex digits: the same for the same thing, whichever run uses it and as what."""
    if record.uri:
        return identity_of(record.backend, record.uri)
    return identity_of("", record.digest or record.reference)


def identity_of(backend: str, uri: str) -> str:
    """The same for what a backend holds under this URI."""
    return hashlib.sha256(f"{backend}\n{uri}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def as_json(records: Sequence[Input]) -> str:
    """Inputs as people and programs read them in a tag: what is known of each, by name."""
    plain = []
    for record in records:
        values = msgspec.structs.asdict(record)
        if record.file is not None:
            values["file"] = msgspec.structs.asdict(record.file)
        plain.append({key: value for key, value in values.items() if value not in ("", None, {})})
    return msgspec.json.encode(plain).decode()


def of_json(text: str) -> list[Input]:
    """Inputs from such a tag; none if it was cut short, or is somebody else's."""
    try:
        return [_input(item) for item in msgspec.json.decode(text, type=list[dict[str, Any]])]
    except (msgspec.MsgspecError, TypeError):
        return []


def _input(item: dict[str, Any]) -> Input:
    file = item.pop("file", None)
    return Input(**item, file=StagedFile(**file) if file else None)


class Inputs:
    """The inputs of one run."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def completed(self, entry: Entry) -> Completed:
        """Hash and describe what a record points to, and compare it with the inputs before.

        A file that is no longer what it was when the record was made is recorded without a digest, and says so.
        """
        record = entry.record
        assert isinstance(record, Input)  # noqa: S101 -- the lane sorts by kind
        if record.file is not None and not record.digest:
            record = self._described(record)
        warnings = self._compared(entry.sequence >> ATTEMPT_SHIFT, record) if record.type == "dataset" else {}
        metadata = {key: value for key, value in record.metadata.items() if key != FOLDER}  # means this machine only
        return Completed(entry._replace(record=msgspec.structs.replace(record, metadata=metadata)), warnings)

    def _described(self, record: Input) -> Input:
        assert record.file is not None  # noqa: S101 -- the caller has looked
        why = changed(self._directory.path, record.file)
        if why is not None:
            return msgspec.structs.replace(record, metadata={**record.metadata, "digest_missing": why})
        path = locate(self._directory.path, record.file)
        metadata = dict(record.metadata)
        if record.type == "dataset" and (coco := _read(path)) is not None:
            metadata |= _statistics(coco)
        return msgspec.structs.replace(record, digest=file_digest(path), metadata=metadata)

    def _compared(self, attempt: int, record: Input) -> dict[str, str]:
        known = self._remembered()
        mine = Known(
            attempt,
            record.role,
            record.name,
            record.digest,
            str(locate(self._directory.path, record.file)) if record.file else "",
            images if isinstance(images := record.metadata.get("images"), str) else "",
            str(record.metadata.get(FOLDER) or ""),
        )
        warnings: dict[str, str] = {}
        before = [each for each in known if each.role == record.role and each.attempt < attempt]
        if before and record.role in {"val", "test"}:
            last = {each.digest for each in before if each.attempt == max(other.attempt for other in before)}
            if record.digest and record.digest not in last:
                warnings[f"changed.{record.role}"] = (
                    f"the {record.role} data set {record.name!r} is not the one of the training before it was resumed "
                    f"(digest {record.digest[:12]}, before {', '.join(sorted(each[:12] for each in last))}): "
                    "metrics before and after cannot be compared"
                )
        for other in known:
            if other.attempt == attempt and {mine.role, other.role} in ({"train", "val"}, {"train", "test"}):
                shared = _shared(mine, other)
                if shared:
                    train, held_out = (mine, other) if mine.role == "train" else (other, mine)
                    names = ", ".join(Path(name).name for name in shared[:SHOWN])
                    warnings["leakage"] = (
                        f"{len(shared)} images are in the training set {train.name!r} and in the {held_out.role} set "
                        f"{held_out.name!r} as well ({names}{', ...' if len(shared) > SHOWN else ''}): "
                        "what is measured on them says little"
                    )
        if mine not in known:
            write_bytes(self._directory.path / MEMORY, msgspec.json.encode([*known, mine]))
        return warnings

    def _remembered(self) -> list[Known]:
        try:
            return msgspec.json.decode((self._directory.path / MEMORY).read_bytes(), type=list[Known])
        except (OSError, msgspec.MsgspecError):
            return []


def _read(path: Path) -> _Coco | None:
    """A COCO annotation file; None if it is none, or too large to look into beside a training."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        return msgspec.json.decode(path.read_bytes(), type=_Coco)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _statistics(coco: _Coco) -> dict[str, Any]:
    names = {category.id: category.name for category in coco.categories}
    classes = dict.fromkeys(names.values(), 0)
    for annotation in coco.annotations:
        if annotation.category_id in names:
            classes[names[annotation.category_id]] += 1
    return {"num_images": len(coco.images), "num_objects": len(coco.annotations), "classes": classes}


def _shared(one: Known, other: Known) -> list[str]:
    """Names of the images of `one` that `other` has too: by their content, of artifacts, else by where they are."""
    if one.folder and other.folder:
        from unified_tracker.datasets._leakage import shared_images  # with all of data sets: for runs that use some

        return shared_images(_files(one.folder), _files(other.folder))
    return [] if one.folder or other.folder else sorted(_places(one) & _places(other))


def _files(folder: str) -> dict[str, _File]:
    try:
        return msgspec.json.decode((Path(folder) / "dataset.json").read_bytes(), type=_Description).files
    except (OSError, msgspec.MsgspecError):
        return {}


def _places(known: Known) -> set[str]:
    coco = _read(Path(known.file)) if known.file else None
    if coco is None:
        return set()
    return {str(Path(known.images) / image.file_name) for image in coco.images if image.file_name}
