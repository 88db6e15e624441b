"""The W&B store of a machine that records offline: what its own runs have logged. Imports no wandb, asks nobody."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from unified_tracker._errors import ConfigurationError, TrackerError
from unified_tracker._reference import ArtifactReference
from unified_tracker._rundir import RunDirectory
from unified_tracker._store import RunSummary
from unified_tracker._survey import JournalSurvey
from unified_tracker._versions import ArtifactVersion, FileInfo, newest_first, some
from unified_tracker.backends import _wandb_values as values
from unified_tracker.backends._wandb_index import Collection, Index, KeptRun, KeptVersion, Logged, here
from unified_tracker.records import Finished

BACKEND: Final = "wandb"


class _Found(NamedTuple):
    collection: Collection
    version: KeptVersion


class OfflineStore:
    """Versions by the numbers of this machine: a server that gets the runs one day counts on its own."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Open nothing yet.

        Raises:
            ConfigurationError: This user has no home, and so no notes.
        """
        self._entity: str = options.get("entity") or ""
        self._project: str = options.get("project") or ""
        try:
            self._index = Index()
        except (OSError, RuntimeError, KeyError) as error:
            raise ConfigurationError(
                f"nothing is noted of W&B's offline runs without a home folder: {error}"
            ) from error

    def find(self, reference: ArtifactReference) -> ArtifactVersion:
        """As `ArtifactStore`."""
        collection = self._collection(reference)
        aliases = collection.aliases()
        alias = values.asked_alias(reference.alias)
        number = aliases.get(alias)
        if number is None and alias[:1] == "v" and alias[1:].isdigit():
            number = int(alias[1:])
        for version in collection.versions:
            if version.number == number and not version.deleted:
                return _described(collection, version, _bytes_of(collection, version), aliases, self._results())
        there = [f"v{version.number}" for version in collection.versions if not version.deleted]
        raise TrackerError(
            f"{reference}: {collection.place}/{collection.name} has no {reference.alias!r} among what was recorded "
            f"offline on this machine; it has {some([*aliases, *there])}"
        )

    def download(self, version: ArtifactVersion, path: str, target: Path) -> None:
        """As `ArtifactStore`."""
        found = self._exactly(version)
        kept = _bytes_of(*found).files.get(path)
        if kept is None:
            raise TrackerError(f"{version.reference} holds no {path!r}")
        source = Path(kept.path)
        try:
            now = source.stat()
            if (now.st_size, now.st_mtime_ns) != (kept.size, kept.mtime_ns):
                raise TrackerError(f"{version.reference}: {source} is not the file any more that was logged")
            shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise TrackerError(f"{version.reference}: {source} is gone; the run directory kept it") from error

    def versions(
        self,
        *,
        type: str | None = None,  # noqa: A002 -- the field's word
        project: str | None = None,
        name: str | None = None,
    ) -> Iterator[ArtifactVersion]:
        """As `ArtifactStore`; without those whose run directory is gone or has been delivered to a server."""
        entity, place = self._place(project)
        wanted = values.artifact_types(type) if type is not None else None
        results, found = self._results(), []
        for collection in self._index.collections():
            if (
                wanted in {None, collection.type}
                and (name is None or collection.name in {name, values.artifact_names(name)})
                and (not place or place == collection.project)
                and (not entity or collection.entity in {"", entity})
            ):
                aliases = collection.aliases()
                found += [
                    _described(collection, version, record, aliases, results)
                    for version in collection.versions
                    if not version.deleted and (record := _reachable(version)) is not None
                ]
        return iter(newest_first(found))

    def run(self, id: str) -> RunSummary:  # noqa: A002 -- the field's word
        """As `ArtifactStore`."""
        runs = list(self._index.runs())
        for run in runs:
            if id in {run.run, run.run_id}:
                return self._summary(run)
        known = some([run.run for run in runs])
        raise TrackerError(f"no run {id!r} among those that were recorded offline on this machine: {known}")

    def users(self, version: ArtifactVersion) -> list[RunSummary]:
        """As `ArtifactStore`."""
        return [
            self._summary(run)
            for run in sorted(self._index.runs(), key=lambda run: run.created_ms)
            if any(each.backend == BACKEND and each.uri == version.uri for each in run.inputs)
        ]

    def is_registered(self, version: ArtifactVersion) -> bool:
        """As `ArtifactStore`: there is no registry without a server."""
        return False

    def delete(self, version: ArtifactVersion) -> None:
        """As `ArtifactStore`; the run directory, and what is in W&B's own files, stay as they are."""
        collection, found = self._exactly(version)
        self._index.remove(collection, found.number)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _place(self, project: str | None) -> tuple[str, str]:
        """Entity and project that are meant; "" for any."""
        entity, _, last = (project or "").rpartition("/")
        return entity or self._entity, values.project_name(last) if last else ""

    def _collection(self, reference: ArtifactReference) -> Collection:
        entity, project = self._place(reference.project or self._project)
        named = [
            each
            for each in self._index.collections()
            if each.name in {reference.name, values.artifact_names(reference.name)}
            and (not entity or each.entity in {"", entity})
        ]
        found = [each for each in named if not project or each.project == project]
        if len(found) == 1:
            return found[0]
        if found:
            places = some([each.place for each in found])
            raise TrackerError(
                f"{reference} may mean several, in the projects {places}: "
                f"write wandb-artifact://{found[0].place}/{found[0].name}:{reference.alias}"
            )
        if named:
            raise TrackerError(
                f"{reference}: nothing of that name was recorded offline in project {project!r} on this machine; "
                f"there is {some([f'{each.place}/{each.name}' for each in named])}"
            )
        there = [f"{each.place}/{each.name}" for each in self._index.collections()]
        raise TrackerError(
            f"{reference}: nothing of that name was recorded offline on this machine; there is {some(there)}. "
            "What a server holds is found with WANDB_MODE=online and a key"
        )

    def _exactly(self, version: ArtifactVersion) -> _Found:
        for collection in self._index.collections():
            for each in collection.versions:
                if _uri(collection, each) == version.uri and each.digest == version.digest and not each.deleted:
                    return _Found(collection, each)
        raise TrackerError(f"{version.reference} is not known on this machine any more")

    def _results(self) -> dict[str, dict[str, float]]:
        """What runs that evaluated a version have found of it: its address to metrics, the latest of each."""
        results: dict[str, dict[str, float]] = {}
        for each in sorted((each for run in self._index.runs() for each in run.inputs), key=lambda each: each.ts):
            if each.backend == BACKEND and each.metrics:
                results.setdefault(each.uri, {}).update(values.finite(each.metrics))
        return results

    def _summary(self, run: KeptRun) -> RunSummary:
        directory = RunDirectory(Path(run.run_dir))
        try:
            directory.info()  # nothing is said of a run that is gone
            state = directory.lane_state(BACKEND)
            survey = JournalSurvey(directory.journal)
            status: str
            ended = survey.last is not None and isinstance(survey.last.record, Finished)
            status = survey.status if ended or (state is not None and state.done) else "RUNNING"
        except (OSError, msgspec.MsgspecError):  # gone, or somebody else's
            state, status = None, ""
        return RunSummary(
            BACKEND,
            run.run,
            run.run_id,
            run.name,
            f"{run.entity}/{run.project}" if run.entity else run.project,
            state.address.url if state is not None and state.address is not None else "",
            status,
            run.created_ms,
            run.inputs,
        )


def _described(
    collection: Collection,
    version: KeptVersion,
    record: Logged,
    aliases: Mapping[str, int],
    results: Mapping[str, Mapping[str, float]],
) -> ArtifactVersion:
    first, last, uri = version.first, version.last, _uri(collection, version)
    return ArtifactVersion(
        BACKEND,
        collection.place,
        collection.name,
        f"v{version.number}",
        collection.type,
        version.digest,
        uri,
        files={path: FileInfo(kept.size, f"sha256:{kept.sha256}") for path, kept in record.files.items()},
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == version.number)),
        metadata=last.metadata,
        metrics={**last.metrics, **results.get(uri, {})},
        step=last.step,
        epoch=last.epoch,
        run=first.run,
        run_id=first.run_id,
        created_ms=first.ts,
    )


def _uri(collection: Collection, version: KeptVersion) -> str:
    """The version on this machine: a server that gets the run may count differently, but knows it by its digest."""
    return str(ArtifactReference(BACKEND, collection.place, collection.name, f"v{version.number}"))


def _reachable(version: KeptVersion) -> Logged | None:
    """A record of the version whose run directory is there, and offline still."""
    there = (each for each in version.logged if not each.online and each.is_there())
    return max(there, key=lambda each: each.order, default=None)


def _bytes_of(collection: Collection, version: KeptVersion) -> Logged:
    found = _reachable(version)
    if found is not None:
        return found
    name, last = f"{collection.place}/{collection.name}:v{version.number}", version.last
    if last.online:
        raise TrackerError(
            f"{name} was recorded offline here, and run {last.run_id} has been delivered to the server since: "
            "it is found there, with WANDB_MODE=online and a key"
        )
    where = "" if last.host == here() else f" on {last.host}"
    raise TrackerError(
        f"{name} was recorded offline by run {last.run_id}, and its run directory {last.run_dir}{where} "
        "is gone from here: its files were there and nowhere else"
    )
