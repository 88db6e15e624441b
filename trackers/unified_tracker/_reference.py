"""References: `mlflow-artifact://[experiment/]name:alias`, `wandb-artifact://[entity/project/]name:alias`.

MLflow's own `models:/...` and `runs:/...` are references too. Behind the alias a path inside the artifact may follow.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

import msgspec

from unified_tracker._errors import ConfigurationError

SHAPE: Final = re.compile(
    r"(?P<backend>[a-z][\w\-]*)-artifact://(?:(?P<project>[^:]+)/)?(?P<name>[^/:]+)"
    r"(?::(?P<alias>[^/:]+)(?:/(?P<path>.*))?)?"
)
REGISTERED: Final = re.compile(r"models:/+(?P<name>[^/@]+)(?:[@/](?P<alias>[^/]+))?(?:/(?P<path>.*))?")
RUNS: Final = re.compile(r"runs:/+(?P<run>[^/]+)/(?P<path>.+)")
SCHEMES: Final = ("mlflow-artifact", "wandb-artifact", "models", "runs")


class ArtifactReference(msgspec.Struct, frozen=True):
    """One version of an artifact in a backend.

    Attributes:
        backend: The backend's name.
        project: MLflow experiment, or W&B "entity/project" or "project"; None for the configured one.
        name: Of the artifact.
        alias: A version ("v3"), "latest", or another alias.
        path: Of a file inside it, POSIX; "" for all of it.
        uri: The reference in the backend's own words ("models:/detector@best"), where it was given so.
    """

    backend: str
    project: str | None
    name: str
    alias: str = "latest"
    path: str = ""
    uri: str = ""

    def __str__(self) -> str:
        if self.uri:
            return self.uri
        place = f"{quote(self.project, safe='/ ')}/" if self.project else ""
        return f"{self.backend}-artifact://{place}{self.name}:{self.alias}"


def parse(text: str) -> ArtifactReference | None:
    """A reference from its text; None if the text is none, but a path.

    Raises:
        ConfigurationError: It begins like a reference and is none.
    """
    if "-artifact:/" in text and "-artifact://" not in text:
        text = text.replace("-artifact:/", "-artifact://", 1)  # what `Path` makes of it
    if found := SHAPE.fullmatch(text):
        project = found["project"]
        return ArtifactReference(
            found["backend"],
            unquote(project) if project else None,
            unquote(found["name"]),
            found["alias"] or "latest",
            found["path"] or "",
        )
    if found := REGISTERED.fullmatch(text):
        path = found["path"] or ""
        uri = text.removesuffix(path).rstrip("/") if path else text
        return ArtifactReference("mlflow", None, found["name"], found["alias"] or "", path, uri)
    if found := RUNS.fullmatch(text):
        return ArtifactReference("mlflow", None, found["path"].rstrip("/").rpartition("/")[2], "", "", text)
    if re.match(r"[\w\-]+-artifact://|(models|runs):/", text):
        raise ConfigurationError(
            f"{text!r} is no artifact reference: mlflow-artifact://[experiment/]name:alias, "
            "wandb-artifact://[entity/project/]name:alias, models:/name@alias, or runs:/run/path"
        )
    return None
