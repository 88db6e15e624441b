"""A version of an artifact, as a backend describes it and as the cache keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from unified_tracker._reference import ArtifactReference

SHOWN: Final = 20


class FileInfo(msgspec.Struct, frozen=True):
    """One file of an artifact.

    Attributes:
        size: Bytes; None if the backend does not say.
        digest: "sha256:<hex>" or "md5:<hex>"; "" if the backend does not say.
    """

    size: int | None = None
    digest: str = ""


class ArtifactVersion(msgspec.Struct, frozen=True):
    """One version of an artifact.

    Attributes:
        backend: The backend's name.
        project: MLflow experiment, W&B "entity/project"; None where there is none.
        name: Of the artifact.
        version: "v3"; "" where the backend does not count.
        type: "model", "dataset", ...
        digest: Of the content, as the backend knows it; together with `uri` the identity of the bytes.
        uri: The backend's own name of exactly this version.
        files: Path inside the artifact, POSIX, to what is known of the file. Comes from elsewhere: not to be trusted.
        aliases: Without the version itself.
        metadata: As recorded.
        metrics: Bound to this version.
        step, epoch: Where in the training it was made.
        run: The backend's id of the run that made it; "" if unknown.
        run_id: Our id of that run; "" if it is none of ours.
        created_ms: Milliseconds since the epoch.
        bytes: Of all files, where the backend says it of the whole.
    """

    backend: str
    project: str | None
    name: str
    version: str
    type: str
    digest: str
    uri: str
    files: dict[str, FileInfo] = {}
    aliases: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    step: int | None = None
    epoch: float | None = None
    run: str = ""
    run_id: str = ""
    created_ms: int = 0
    bytes: int | None = None

    @property
    def reference(self) -> ArtifactReference:
        """A reference to exactly this version."""
        if not self.version:
            return ArtifactReference(self.backend, None, self.name, "", "", self.uri)
        return ArtifactReference(self.backend, self.project, self.name, self.version)

    @property
    def size(self) -> int | None:
        """Bytes of all files; None if one is unknown, or what files there are."""
        if self.bytes is not None:
            return self.bytes
        sizes = [file.size for file in self.files.values()]
        return None if None in sizes or not sizes else sum(size or 0 for size in sizes)


def newest_first(versions: Iterable[ArtifactVersion]) -> list[ArtifactVersion]:
    """Sorted by time; of one moment the higher number comes first."""

    def age(version: ArtifactVersion) -> tuple[int, int]:
        number = version.version[1:]
        return -version.created_ms, -int(number) if number.isdigit() else 0

    return sorted(versions, key=age)


def some(names: Iterable[str]) -> str:
    """What there is, for an error message that says what there is not."""
    shown = sorted(dict.fromkeys(names))
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more if shown else "nothing"
