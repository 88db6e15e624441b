"""Versions: artifacts on their way to W&B. The same content is logged once, and counts when the server has it."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import wandb
from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

from unified_tracker._backoff import Clock
from unified_tracker._errors import TransientError
from unified_tracker.backends import _wandb_values as values
from unified_tracker.backends._wandb_errors import clean
from unified_tracker.records import Artifact

WAIT_S: Final = 60.0  # for one call of the lane, however many versions it is about
LEAST_S: Final = 1.0
REFUSED: Final = re.compile(r"returned error (400|413|422)|: input: ")  # the request is wrong, not the moment


@dataclass(frozen=True)
class Reference:
    """A file that another version holds, or that W&B does not hold at all."""

    url: str
    digest: str
    size: int = 0


@dataclass(frozen=True)
class Draft:
    """A version as it is to be logged.

    Attributes:
        name, type, aliases: As users know them; W&B may get others.
        files: Name in the artifact to where the bytes are; they must stay until W&B has them.
        references: Name in the artifact to a file of another one.
    """

    name: str
    type: str
    files: Mapping[str, Path]
    references: Mapping[str, Reference] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] = ()

    @classmethod
    def of(cls, record: Artifact, name: str, files: Mapping[str, Path]) -> Draft:
        """What a record says, with these files."""
        return cls(name, record.type, files, {}, values.metadata(record), record.aliases)

    def as_references(self, name: str, version: Version, kind: str = "", only: Sequence[str] = ()) -> Draft:
        """The same under another name: references to the files of what has been logged, or to `only` some of them."""
        references = {path: version.reference(path) for path in only or self.files}
        return Draft(name, kind or self.type, {}, references, self.metadata, self.aliases)


@dataclass(frozen=True)
class Version:
    """A version that has been logged.

    Attributes:
        url: What references to its files begin with.
        digests: Name of each file in it to its digest.
    """

    name: str
    url: str
    digest: str
    digests: Mapping[str, str]
    metadata: Mapping[str, Any]
    aliases: frozenset[str]

    def reference(self, path: str) -> Reference:
        """To one of its files."""
        return Reference(f"{self.url}/{path}", self.digests[path])


class Versions:
    """All artifacts of a run that are logged by this process."""

    def __init__(self, run: Any, *, offline: bool, clock: Clock = time) -> None:
        self._run, self._offline, self._clock = run, offline, clock
        self._latest: dict[str, Version] = {}
        self._uploading: dict[str, tuple[int, _Upload, Version]] = {}

    def deadline(self) -> float:
        """Until when one call of the lane may wait for what it logs."""
        return self._clock.monotonic() + WAIT_S

    def log(self, sequence: int, draft: Draft, deadline: float | None = None) -> Version:
        """Log a version, unless the latest one is the same: content, metadata and every alias.

        Args:
            sequence: Of the record: when it comes again, nothing is sent twice.
            draft: What it holds.
            deadline: When to stop waiting for the server, see `deadline`.

        Raises:
            TransientError: The server has not committed it yet.
        """
        pending = self._uploading.get(draft.name)
        if pending is None or pending[0] != sequence:
            artifact = artifact_of(draft)
            version = _version(draft, artifact, self._latest.get(draft.name))
            if version == self._latest.get(draft.name):
                return version
            # Of the same content W&B moves the aliases, and makes no new version.
            self._run.log_artifact(artifact, aliases=values.aliases(draft.aliases))
            pending = self._uploading[draft.name] = sequence, _Upload(artifact), version
            if not self._offline:
                pending[1].start()
        _, upload, version = pending
        if not self._offline:
            self._await(upload, draft.name, self.deadline() if deadline is None else deadline)
            # W&B writes ids in base64, and in references in hexadecimal.
            url = f"wandb-artifact://{base64.standard_b64decode(upload.artifact.id).hex()}"
            version = replace(version, url=url)
        del self._uploading[draft.name]
        self._latest[draft.name] = version
        return version

    def forget(self, name: str) -> None:
        """What was logged under a name may be gone from the server: the same content is logged again."""
        self._latest.pop(name, None)

    def _await(self, upload: _Upload, name: str, deadline: float) -> None:
        """Wait until the server has committed an artifact."""
        upload.join(max(deadline - self._clock.monotonic(), LEAST_S))
        if upload.is_alive():
            raise TransientError(f"W&B is still taking artifact {name!r}")
        if upload.error is None:
            return
        del self._uploading[name]
        if not isinstance(upload.error, ValueError):
            raise upload.error
        text = clean(f"artifact {name!r}: {upload.error}")
        if REFUSED.search(text):
            raise wandb.Error(text) from upload.error  # the lane tries a few times, then sets it aside
        raise TransientError(text) from upload.error


class _Upload(threading.Thread):
    """Waits for one artifact without a limit: once a wait with a limit has run out, W&B's client never says the end."""

    def __init__(self, artifact: Any) -> None:
        super().__init__(name=f"upload of {artifact.name}", daemon=True)
        self.artifact = artifact
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.artifact.wait()
        except Exception as error:  # noqa: BLE001 -- raised in the thread that asks
            self.error = error


def artifact_of(draft: Draft) -> Any:
    """W&B's artifact that says what a draft says, not logged yet."""
    name, metadata = values.artifact_names(draft.name), draft.metadata
    if name != draft.name:
        metadata = {**metadata, "unified_tracker/name": draft.name}
    artifact = wandb.Artifact(name, type=values.artifact_types(draft.type), metadata=metadata)
    for path, source in draft.files.items():
        artifact.add_file(str(source), name=path, policy="immutable", skip_cache=True)
    for path, reference in draft.references.items():
        # As `add_reference` does it, which would fetch the other artifact from the server, once a file.
        entry = ArtifactManifestEntry(path=path, ref=reference.url, digest=reference.digest, size=reference.size)
        artifact.manifest.add_entry(entry)
    return artifact


def _version(draft: Draft, artifact: Any, latest: Version | None) -> Version:
    """What comes of a draft that is logged after `latest`; equal to it if nothing does."""
    aliases, metadata = frozenset(values.aliases(draft.aliases)), dict(artifact.metadata)
    if latest is not None and latest.digest == artifact.digest:
        if latest.metadata == metadata and latest.aliases >= aliases:
            return latest
        aliases |= latest.aliases
    digests = {path: entry.digest for path, entry in artifact.manifest.entries.items()}
    # Until the server has given it an id, W&B's own name for it; its client resolves it when it uploads.
    url = f"wandb-client-artifact://{artifact._client_id}"
    return Version(draft.name, url, artifact.digest, digests, metadata, aliases)
