"""References: `mlflow-artifact://[experiment/]name:alias` and `wandb-artifact://[entity/project/]name:alias`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import msgspec

from unified_tracker._errors import ConfigurationError

SHAPE: Final = re.compile(
    r"(?P<backend>[a-z][\w\-]*)-artifact://(?:(?P<project>.+)/)?(?P<name>[^/:]+)(?::(?P<alias>.+))?"
)


class ArtifactReference(msgspec.Struct, frozen=True):
    """One version of an artifact in a backend.

    Attributes:
        backend: The backend's name.
        project: MLflow experiment, or W&B "entity/project" or "project"; None for the configured one.
        name: Of the artifact.
        alias: A version ("v3"), "latest", or another alias.
    """

    backend: str
    project: str | None
    name: str
    alias: str = "latest"

    def __str__(self) -> str:
        place = f"{self.project}/" if self.project else ""
        return f"{self.backend}-artifact://{place}{self.name}:{self.alias}"


def parse(text: str) -> ArtifactReference | None:
    """A reference from its text; None if the text is none, but a path."""
    found = SHAPE.fullmatch(text)
    if found is None:
        if "-artifact://" in text:
            raise ConfigurationError(f"{text!r} is no artifact reference: BACKEND-artifact://[project/]name:alias")
        return None
    project = found["project"]
    return ArtifactReference(
        found["backend"], unquote(project) if project else None, unquote(found["name"]), found["alias"] or "latest"
    )


def fetch(reference: ArtifactReference, target: Path) -> Path:
    """Download an artifact. Asks the server, may take long; not for a training's loop.

    Args:
        reference: Which.
        target: An existing folder; what is downloaded stays in it.

    Returns:
        The folder that holds the artifact's files.

    Raises:
        ConfigurationError: There is no such backend, or it cannot fetch.
        TrackerError: The server does not answer, or has no such artifact.
    """
    from unified_tracker import _plugins  # knows `Backend`, which knows this

    backend = _plugins.load(reference.backend)
    _plugins.require(backend)
    if backend.fetch is None:
        raise ConfigurationError(f"backend {reference.backend!r} cannot fetch artifacts: {reference}")
    return backend.fetch(reference, target)
