"""Lineage: what an artifact was made from, through any number of runs, and what was made from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from unified_tracker._errors import TrackerError
from unified_tracker._reference import ArtifactReference, parse
from unified_tracker._store import ArtifactStore, RunSummary
from unified_tracker._versions import ArtifactVersion
from unified_tracker.records import Input


class LineageArtifact(msgspec.Struct):
    """An artifact, or anything else that a run was made from.

    Attributes:
        reference: What means exactly this version, or a URL or path for what no backend holds.
        role: As what the run above uses it; "" for the artifact that was asked about, and for what a run has made.
        type, digest, aliases, metrics: As recorded.
        made_by: The run that logged it; None if nobody knows.
        used_by: Runs that were made from it.
        trouble: Why nothing more is known.
        repeated: It stands elsewhere in the tree with everything that belongs to it.
    """

    reference: str
    role: str = ""
    type: str = ""
    digest: str = ""
    aliases: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    made_by: LineageRun | None = None
    used_by: list[LineageRun] = []
    trouble: str = ""
    repeated: bool = False


class LineageRun(msgspec.Struct):
    """A run between artifacts.

    Attributes:
        role: As what it uses the artifact above; "" for the run that has made it.
        inputs: What it was made from.
        outputs: The models that it has made, where that is asked for.
        metrics: What it found of the artifact above, if it evaluated it.
        repeated: It stands elsewhere in the tree with everything that belongs to it.
    """

    backend: str
    id: str
    run_id: str = ""
    name: str = ""
    project: str = ""
    status: str = ""
    url: str = ""
    role: str = ""
    inputs: list[LineageArtifact] = []
    outputs: list[LineageArtifact] = []
    metrics: dict[str, float] = {}
    repeated: bool = False

    @classmethod
    def of(cls, summary: RunSummary, role: str = "") -> LineageRun:
        """A run, as yet without what stands around it."""
        known = (summary.backend, summary.id, summary.run_id, summary.name, summary.project)
        return cls(*known, summary.status, summary.url, role)


class Lineage:
    """Looks up a tree. Asks backends; a backend that does not answer leaves a leaf that says so."""

    def __init__(self, store_of: Callable[[str], ArtifactStore]) -> None:
        """Take what opens the store of a backend."""
        self._store_of = store_of
        self._stores: dict[str, ArtifactStore] = {}
        self._seen: set[str] = set()

    def of(self, reference: ArtifactReference) -> LineageArtifact:
        """The tree around a version: upwards to where it comes from, downwards to what came of it.

        Raises:
            TrackerError: There is no such artifact, or its backend does not answer.
        """
        version = self._store(reference.backend).find(reference)
        found = self._artifact(version)
        self._seen.discard(version.uri)
        self._add_users(found, version)
        return found

    def _artifact(self, version: ArtifactVersion, role: str = "") -> LineageArtifact:
        found = LineageArtifact(
            str(version.reference), role, version.type, version.digest, version.aliases, version.metrics
        )
        if version.uri in self._seen:
            found.repeated = True
            return found
        self._seen.add(version.uri)
        if version.run:
            try:
                found.made_by = self._run(self._store(version.backend).run(version.run))
            except TrackerError as error:
                found.trouble = str(error)
        return found

    def _run(self, summary: RunSummary, role: str = "") -> LineageRun:
        found = LineageRun.of(summary, role)
        key = f"{summary.backend} {summary.id}"
        if key in self._seen:
            found.repeated = True
            return found
        self._seen.add(key)
        found.inputs = [self._input(each) for each in summary.inputs]
        return found

    def _input(self, used: Input) -> LineageArtifact:
        reference = _reference_of(used)
        if reference is None:
            return LineageArtifact(used.reference, used.role, used.type, used.digest)
        try:
            return self._artifact(self._store(used.backend).find(reference), used.role)
        except TrackerError as error:
            return LineageArtifact(used.reference, used.role, used.type, used.digest, trouble=str(error))

    def _add_users(self, artifact: LineageArtifact, version: ArtifactVersion) -> None:
        """Downwards: runs that used it, and the models that they have made."""
        if version.uri in self._seen:
            artifact.repeated = True
            return
        self._seen.add(version.uri)
        store = self._store(version.backend)
        for summary in store.users(version):
            mine = [used for used in summary.inputs if used.uri == version.uri]
            role = ", ".join(dict.fromkeys(used.role for used in mine))
            run = LineageRun.of(summary, role)
            run.metrics = {name: float(value) for used in mine for name, value in used.metrics.items()}
            key = f"users of {version.uri} {summary.id}"
            if key in self._seen:
                run.repeated = True
            else:
                self._seen.add(key)
                run.outputs = self._outputs(store, summary)
            artifact.used_by.append(run)

    def _outputs(self, store: ArtifactStore, summary: RunSummary) -> list[LineageArtifact]:
        if not summary.run_id:
            return []
        found = []
        project = summary.project or None
        for version in store.versions(type="model", project=project, name=f"run-{summary.run_id}-model"):
            output = LineageArtifact(
                str(version.reference), "", version.type, version.digest, version.aliases, version.metrics
            )
            self._add_users(output, version)
            found.append(output)
        return found

    def _store(self, backend: str) -> ArtifactStore:
        if backend not in self._stores:
            self._stores[backend] = self._store_of(backend)
        return self._stores[backend]


def plain(found: LineageArtifact | LineageRun) -> dict[str, Any]:
    """As JSON-compatible values, without what is empty."""
    values: dict[str, Any] = {}
    for name in found.__struct_fields__:
        value = getattr(found, name)
        if isinstance(value, (LineageArtifact, LineageRun)):
            values[name] = plain(value)
        elif isinstance(value, list):
            if value:
                values[name] = [plain(each) for each in value]
        elif value not in ("", (), {}, None, False):
            values[name] = value
    return values


def _reference_of(used: Input) -> ArtifactReference | None:
    """A reference to exactly the version that was used; None for what no backend holds."""
    if not used.backend or not used.uri:
        return None
    try:
        return parse(used.uri) or parse(f"{used.backend}-artifact://{used.uri}")
    except TrackerError:
        return None
