"""What a training is made from, as records: data sets and weights, by reference or as files that stay where they are.

For the adapters. Nothing here reads a file: the uploader hashes and describes what the records point to.
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from unified_tracker._detector import read_card
from unified_tracker._errors import TrackerError
from unified_tracker._fetching import Fetched, fetched, input_of
from unified_tracker._journal import now_ms
from unified_tracker._mask import mask_text
from unified_tracker.records import Input, StagedFile

METADATA: Final = "detectron2_metadata.json"  # beside the annotations of a data set


class _Metadata(msgspec.Struct):
    """The part of a data set's metadata that names classes."""

    thing_classes: tuple[str, ...] = ()


def weights_input(text: str, role: str, file: Path | None = None) -> Input:
    """The record of weights.

    Args:
        text: A reference that this process has fetched, a URL, a path.
        role: "weights" or "checkpoint".
        file: Where the bytes are on this machine, if they are.
    """
    if (found := _fetched(text)) is not None:
        return input_of(found, role)
    name = PurePosixPath(urlsplit(text).path).name or text
    return Input(now_ms(), role, "model", mask_text(text), mask_text(name), file=in_place(file))


def dataset_input(
    role: str, text: str, name: str, *, annotations: Path | None = None, images: str | None = None, **metadata: Any
) -> Input:
    """The record of a data set.

    Args:
        role: "train", "val" or "test".
        text: A reference that this process has fetched, else what the configuration says: a name, a path.
        name: What people call it; a reference says it itself.
        annotations: The annotation file.
        images: The folder of images.
        metadata: What else is known.
    """
    if (found := _fetched(text)) is not None:
        return input_of(found, role)
    known = {key: value for key, value in {"images": images, **metadata}.items() if value}
    return Input(now_ms(), role, "dataset", mask_text(text), name, file=in_place(annotations), metadata=known)


def in_place(file: Path | None) -> StagedFile | None:
    """A file that is not copied, as it is now; None if there is none."""
    if file is None:
        return None
    try:
        now = file.stat()
    except OSError:
        return None
    if not stat.S_ISREG(now.st_mode):
        return None
    return StagedFile(file.name, str(file.absolute()), now.st_size, now.st_mtime_ns)


def dataset_digest(record: Input) -> str:
    """Of a data set's content, the same in every backend; "" where it would have to be hashed."""
    found = _fetched(record.reference)
    return str((found.version.metadata.get("digest") if found is not None else "") or record.digest)


def classes_of(text: str) -> tuple[str, ...]:
    """Names of the classes that a fetched artifact knows, in the order of labels; empty if it does not say."""
    found = _fetched(text)
    if found is None:
        return ()
    try:
        if (card := read_card(found.folder)) is not None:
            return card.classes
        return msgspec.json.decode((found.folder / METADATA).read_bytes(), type=_Metadata).thing_classes
    except (TrackerError, OSError, msgspec.MsgspecError):
        return ()


def step_of(text: str) -> int | None:
    """Completed iterations of a tracked checkpoint that was fetched; None if nobody has said."""
    found = _fetched(text)
    return found.version.step if found is not None else None


def _fetched(text: str) -> Fetched | None:
    return fetched(text) if ":/" in text else None
