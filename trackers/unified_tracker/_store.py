"""Reading what backends hold: the `ArtifactStore` protocol, and what it gives.

A store asks its backend and may take long: it is used by commands, and by the helper process that fetches artifacts,
never in a training process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from unified_tracker import _plugins, _settings
from unified_tracker._console import quiet
from unified_tracker._errors import ConfigurationError
from unified_tracker._reference import ArtifactReference
from unified_tracker._versions import ArtifactVersion
from unified_tracker.records import Input


class RunSummary(msgspec.Struct, frozen=True):
    """A run as its backend describes it.

    Attributes:
        backend: The backend's name.
        id: The backend's own id.
        run_id: Ours, eight characters; "" for a run of somebody else's.
        name, project, url, status: As the backend shows them; "" where it has none.
        created_ms: Milliseconds since the epoch.
        inputs: What it was made from, in the order of use.
    """

    backend: str
    id: str
    run_id: str = ""
    name: str = ""
    project: str = ""
    url: str = ""
    status: str = ""
    created_ms: int = 0
    inputs: tuple[Input, ...] = ()


class ArtifactStore(Protocol):
    """The artifacts of one backend. `TrackerError` when something is not there, or the backend does not answer."""

    def find(self, reference: ArtifactReference) -> ArtifactVersion:
        """The version that a reference means now. The error names what there is instead."""

    def download(self, version: ArtifactVersion, path: str, target: Path) -> None:
        """Write the bytes of one file to `target`, whose folder exists. Called from several threads."""

    def versions(
        self,
        *,
        type: str | None = None,  # noqa: A002 -- the field's word
        project: str | None = None,
        name: str | None = None,
    ) -> Iterator[ArtifactVersion]:
        """All versions, newest first; of one type, one project (None: all of them), one name."""

    def run(self, id: str) -> RunSummary:  # noqa: A002 -- the field's word
        """The run with the backend's id."""

    def users(self, version: ArtifactVersion) -> list[RunSummary]:
        """The runs that used a version."""

    def is_registered(self, version: ArtifactVersion) -> bool:
        """Whether the backend's registry of models points to a version."""

    def delete(self, version: ArtifactVersion) -> None:
        """Remove a version and its bytes."""


def open_store(backend: str, options: Mapping[str, Any] | None = None, *, checked: bool = False) -> ArtifactStore:
    """The store of a backend. Imports its client.

    Args:
        backend: Its name.
        options: As in `start_run`, over those of `tracker.yaml` in the working folder.
        checked: They are complete already, as a run has them.

    Raises:
        ConfigurationError: No such backend, a package is missing, or it keeps no artifacts that can be read.
    """
    offered = _plugins.load(backend)
    _plugins.require(offered)
    if offered.store is None:
        raise ConfigurationError(f"backend {backend!r} cannot read artifacts back")
    if not checked:
        with quiet():
            options = offered.check({**_settings.options_of(backend, Path()), **(options or {})})
    return offered.store(options or {})
