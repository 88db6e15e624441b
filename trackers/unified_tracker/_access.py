"""With what options backends are asked for artifacts, before a run exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unified_tracker._fetching import Fetched, Options, fetch, local_path, weights_file
from unified_tracker._reference import parse
from unified_tracker._start import RunSettings


@dataclass(frozen=True)
class Access:
    """Asks the backends that a training records to as its run will, others with what is given for them.

    Attributes:
        recording: Backend name to checked options.
        others: Backend name to options, as in `start_run`.
        secrets: Credentials, for the helper process only.
    """

    recording: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    others: Options = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, settings: RunSettings, options: Options | None = None) -> Access:
        """What a training's settings say. A reference without a project means the training's own."""
        project = {"project": settings.project} if settings.project else {}
        recording = {name: {**checked, **project} for name, checked in settings.backends.items()}
        return cls(recording, dict(options or {}), settings.secrets)

    def fetch(self, text: str) -> Fetched:
        """As `unified_tracker._fetching.fetch`."""
        reference = parse(text)
        checked = reference is not None and reference.backend in self.recording
        options = self.recording if checked else self.others
        return fetch(text, options, checked=checked, environment=self.secrets)

    def file(self, text: str) -> Path:
        """Where a file inside an artifact is, by a reference with a path; the artifact's folder by one without."""
        self.fetch(text)
        return local_path(text)

    def weights(self, text: str) -> Path:
        """Where weights are: the file that a path behind the alias names, or the artifact's one file of weights."""
        found = self.fetch(text)
        reference = parse(text)
        return local_path(text) if reference is not None and reference.path else weights_file(found)
