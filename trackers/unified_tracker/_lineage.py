"""What a training is made from, as records: data sets and weights, by reference or as files that stay where they are.

For the adapters. Nothing here reads a file: the uploader hashes and describes what the records point to.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import msgspec

from unified_tracker._fetching import Fetched, fetched, input_of
from unified_tracker._journal import now_ms
from unified_tracker._mask import mask_text
from unified_tracker.records import Input, StagedFile

DETECTOR = "detector.json"  # beside the weights of a tracked checkpoint
METADATA = "detectron2_metadata.json"  # beside the annotations of a data set


class _Classes(msgspec.Struct):
    """The part of either file that names classes."""

    classes: list[str] | None = None
    thing_classes: list[str] | None = None


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
    for name in (DETECTOR, METADATA) if found is not None else ():
        try:
            said = msgspec.json.decode((Path(found.path) / name).read_bytes(), type=_Classes)  # type: ignore[union-attr]
        except (OSError, msgspec.MsgspecError):
            continue
        return tuple(said.classes or said.thing_classes or ())
    return ()


def step_of(text: str) -> int | None:
    """Completed iterations of a tracked checkpoint that was fetched; None if nobody has said."""
    found = _fetched(text)
    return found.version.step if found is not None else None


class ClassList(msgspec.Struct, frozen=True):
    """Whose classes, and which.

    Attributes:
        owner: "the model", "the training set 'shapes'".
        names: In the order of labels; empty where only their number is known.
        count: How many.
    """

    owner: str
    names: tuple[str, ...] = ()
    count: int | None = None

    @property
    def size(self) -> int:
        """How many; 0 if nothing is known."""
        return len(self.names) if self.count is None else self.count


def difference(one: ClassList, other: ClassList) -> str | None:
    """A sentence about what is different; None if nothing is, or nobody knows."""
    if not one.size or not other.size or (one.names and one.names == other.names):
        return None
    if not one.names or not other.names:
        if one.size == other.size:
            return None
        return f"{one.owner} has {_described(one)}, {other.owner} has {_described(other)}"
    only_one, only_other = _without(one.names, other.names), _without(other.names, one.names)
    if not only_one and not only_other:
        place = next(i for i, (a, b) in enumerate(zip(one.names, other.names, strict=False)) if a != b)
        return (
            f"{one.owner} and {other.owner} have the same classes in another order: label {place} is "
            f"{one.names[place]!r} in the one, {other.names[place]!r} in the other"
        )
    found = f"the classes of {one.owner} ({one.size}) and of {other.owner} ({other.size}) differ: "
    found += "; ".join(
        f"only {owner} has {_some(names)}"
        for owner, names in ((one.owner, only_one), (other.owner, only_other))
        if names
    )
    return f"{found}; labels of the same number mean different things" if one.size == other.size else found


def _described(classes: ClassList) -> str:
    return f"{classes.size} classes" + (f" ({_some(classes.names)})" if classes.names else "")


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _some(names: Iterable[str], most: int = 10) -> str:
    words = [repr(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _fetched(text: str) -> Fetched | None:
    return fetched(text) if ":/" in text else None
