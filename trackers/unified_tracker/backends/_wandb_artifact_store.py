"""The W&B store: what a server holds. Imports wandb; used by commands and by the helper process that fetches."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

# First: it sets what wandb looks at when it is imported.
from unified_tracker.backends._wandb_settings import INIT_S  # isort: split

import wandb
from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

from unified_tracker._cache import cache_folder
from unified_tracker._errors import ConfigurationError, TrackerError
from unified_tracker._reference import ArtifactReference
from unified_tracker._store import RunSummary
from unified_tracker._versions import ArtifactVersion, FileInfo, newest_first, some
from unified_tracker.backends import _wandb_values as values
from unified_tracker.backends._wandb_errors import clean, is_missing, suppress_missing
from unified_tracker.backends._wandb_inputs import KEY, read_input
from unified_tracker.records import Input

BACKEND: Final = "wandb"
STALE_S: Final = 86_400.0  # a folder of a process that was killed
NO_PROJECT: Final = "uncategorized"  # W&B's own word
INTERNAL: Final = re.compile(r"wandb-.*|job|code|run_table")
SCRATCH: Final = "wandb-"  # folders in the cache that W&B's client works in
NO_KEY: Final = "W&B is asked only with a key: `wandb login`, or set WANDB_API_KEY; or set WANDB_MODE=offline"


class WandbStore:
    """Asks one server, as one user. Threads may share it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Remember whom to ask. Nobody is asked yet."""
        self._options = options
        self._aside = _Aside(options.get("base_url"))
        self._lock = threading.RLock()
        self._arriving: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._artifacts: dict[str, Any] = {}
        self._runs: dict[str, Any] = {}
        self._api: Any = None

    # ---- the protocol --------------------------------------------------------------------------------------------

    def find(self, reference: ArtifactReference) -> ArtifactVersion:
        """As `ArtifactStore`."""
        name = values.artifact_names(reference.name)
        with self._asking(str(reference)):
            place = self._place(reference.project)
            try:
                artifact = self._client().artifact(f"{place}/{name}:{values.asked_alias(reference.alias)}")
            except (ValueError, wandb.errors.CommError) as error:
                if not is_missing(error):
                    raise
                raise TrackerError(f"{reference}: {self._instead(place, name, reference.alias)}") from error
            return self._described(artifact, whole=True)

    def download(self, version: ArtifactVersion, path: str, target: Path) -> None:
        """As `ArtifactStore`."""
        with self._asking(f"{version.reference}/{path}"):
            artifact = self._exactly(version)
            if path not in artifact.manifest.entries:
                raise TrackerError(f"{version.reference} holds no {path!r}")
            entry = artifact.get_entry(path)
            _refuse_foreign(version, entry)
            with self._arriving[entry.digest]:  # W&B's client keeps equal files in one place
                arrived = entry.download(root=str(self._aside.folder_for_one()))
                shutil.move(arrived, target)
                self._aside.forget(entry.digest)

    def versions(
        self,
        *,
        type: str | None = None,  # noqa: A002 -- the field's word
        project: str | None = None,
        name: str | None = None,
    ) -> Iterator[ArtifactVersion]:
        """As `ArtifactStore`, with what one request for 50 versions tells: `files` is empty, `run` too.

        Without a project that of the options is meant; if they name none, all projects of the entity.
        """
        with self._asking("the list of artifacts"):
            configured = project or self._options.get("project")
            if configured:
                places = [self._place(configured)]
            else:
                entity = self._entity()
                places = [f"{entity}/{each.name}" for each in self._client().projects(entity)]
            found = [
                self._described(artifact, whole=False)
                for place in places
                for collection in self._collections(place, type, name)
                if collection.is_sequence()  # others are lists of links
                for artifact in collection.artifacts()
            ]
        return iter(newest_first(found))

    def run(self, id: str) -> RunSummary:  # noqa: A002 -- the field's word
        """As `ArtifactStore`. The id is "entity/project/run"; what is left out is taken from the options."""
        with self._asking(f"run {id!r}"):
            return self._summary(self._run(id))

    def users(self, version: ArtifactVersion) -> list[RunSummary]:
        """As `ArtifactStore`."""
        with self._asking(str(version.reference)):
            runs = self._exactly(version).used_by()
            return [self._summary(self._run(f"{run.entity}/{run.project}/{run.id}")) for run in runs]

    def is_registered(self, version: ArtifactVersion) -> bool:
        """As `ArtifactStore`: whether it is linked into a registry, or another collection."""
        with self._asking(str(version.reference)):
            return bool(self._exactly(version).linked_artifacts)

    def delete(self, version: ArtifactVersion) -> None:
        """As `ArtifactStore`. Aliases that lead to it are removed with it."""
        with self._asking(str(version.reference)):
            self._exactly(version).delete(delete_aliases=True)
            self._artifacts.pop(version.uri, None)

    # ---- asking --------------------------------------------------------------------------------------------------

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Errors of W&B's client become `TrackerError`, and what it writes goes where we say."""
        with self._aside.at_work():
            try:
                yield
            except TrackerError:
                raise
            except Exception as error:
                text = clean(str(error)) or type(error).__name__
                if isinstance(error, wandb.errors.AuthenticationError) or "API key" in text:
                    raise ConfigurationError(f"{NO_KEY} ({text})") from error
                if isinstance(error, OSError):
                    raise TrackerError(f"{what} cannot be had from W&B: {type(error).__name__}: {text}") from error
                raise TrackerError(f"{what}: W&B says: {text}") from error

    def _client(self) -> Any:
        with self._lock:
            if self._api is None:
                given = {key: self._options.get(key) for key in ("base_url", "entity", "project")}
                overrides = {key: value for key, value in given.items() if value}
                self._api = wandb.Api(overrides=overrides, timeout=int(INIT_S))
            return self._api

    def _entity(self) -> str:
        entity = self._options.get("entity") or self._client().default_entity
        if not entity:
            raise ConfigurationError("W&B does not say whose artifacts are meant: set WANDB_ENTITY")
        return str(entity)

    def _place(self, project: str | None) -> str:
        """Entity and project with a "/" between, from as much of it as is given."""
        entity, _, last = (project or self._options.get("project") or NO_PROJECT).rpartition("/")
        return f"{entity or self._entity()}/{values.project_name(last)}"

    def _exactly(self, version: ArtifactVersion) -> Any:
        with self._lock:
            if version.uri not in self._artifacts:
                artifact = self._client().artifact(f"{version.project}/{version.name}:{version.version}")
                if version.digest and artifact.digest != version.digest:
                    raise TrackerError(f"{version.reference} is not the version any more that it was")
                self._artifacts[version.uri] = artifact
            self._artifacts[version.uri].manifest  # noqa: B018 -- fetched once, not by each thread
            return self._artifacts[version.uri]

    def _collections(self, place: str, type: str | None, name: str | None) -> Iterator[Any]:  # noqa: A002
        wanted = values.artifact_types(type) if type is not None else None
        if wanted is not None and name is not None:  # one request a project
            with suppress_missing():
                yield self._client().artifact_collection(wanted, f"{place}/{values.artifact_names(name)}")
            return
        for kind in self._client().artifact_types(place):
            if kind.name != wanted if wanted is not None else INTERNAL.fullmatch(kind.name):
                continue
            for collection in kind.collections():
                if name is None or collection.name == values.artifact_names(name):
                    yield collection

    def _instead(self, place: str, name: str, alias: str) -> str:
        """What there is where something was looked for in vain."""
        entity, _, project = place.partition("/")
        names = []
        try:
            for collection in self._client().project(project, entity).collections():
                if collection.name == name:
                    numbers = [artifact.version for artifact in collection.artifacts()]
                    return f"{place}/{name} has no {alias!r}; it has {some([*collection.aliases, *numbers])}"
                names.append(collection.name)
        except (ValueError, wandb.errors.CommError) as error:
            if not is_missing(error):
                raise
            return f"W&B has no project {place}, or the key does not open it"
        return f"project {place} has no artifact {name!r}; it has {some(names)}"

    # ---- what there is -------------------------------------------------------------------------------------------

    def _described(self, artifact: Any, *, whole: bool) -> ArtifactVersion:
        name, _, version = artifact.name.partition(":")
        version = artifact.version or version
        place = f"{artifact.entity}/{artifact.project}"
        uri = str(ArtifactReference(BACKEND, place, name, version))
        metadata, metrics, step, epoch = _told_apart(artifact.metadata)
        files, run, run_id, digest = {}, "", _run_id_in(name), artifact.digest
        if whole:
            with self._lock:
                self._artifacts[uri] = artifact
            files = {path: _file_info(entry) for path, entry in artifact.manifest.entries.items()}
            maker = self._maker(artifact)
            if maker is not None:
                run, run_id = _path_of(maker), str(maker.config.get("unified_tracker/run_id") or "")
        return ArtifactVersion(
            BACKEND,
            place,
            name,
            version,
            artifact.type,
            digest,
            uri,
            files=files,
            aliases=tuple(sorted(alias for alias in artifact.aliases if alias != version)),
            metadata=metadata,
            metrics=metrics,
            step=step,
            epoch=epoch,
            run=run,
            run_id=run_id,
            created_ms=_milliseconds(artifact.created_at),
        )

    def _maker(self, artifact: Any) -> Any:
        with suppress_missing():  # deleted since
            return artifact.logged_by()
        return None

    def _run(self, id: str) -> Any:  # noqa: A002 -- the field's word
        place, _, last = id.rpartition("/")
        path = f"{self._place(place or None)}/{last}"
        with self._lock:
            if path not in self._runs:
                self._runs[path] = self._client().run(path)
            return self._runs[path]

    def _summary(self, run: Any) -> RunSummary:
        return RunSummary(
            BACKEND,
            _path_of(run),
            str(run.config.get("unified_tracker/run_id") or ""),
            run.name or "",
            f"{run.entity}/{run.project}",
            run.url,
            run.state,
            _milliseconds(run.created_at),
            tuple(self._inputs(run)),
        )

    def _inputs(self, run: Any) -> list[Input]:
        """What its configuration says; then what else W&B knows that it has used."""
        told = run.config.get(KEY)
        inputs = [found for item in (told if isinstance(told, list) else []) if (found := read_input(item)) is not None]
        known = {each.uri for each in inputs} | {each.digest for each in inputs if each.digest}
        external = {each.reference for each in inputs if not each.backend}
        for artifact in run.used_artifacts():
            used = self._described(artifact, whole=False)
            if used.uri in known or used.digest in known or used.metadata.get("original_url") in external:
                continue
            inputs.append(
                Input(
                    used.created_ms,
                    "used",
                    used.type,
                    str(used.reference),
                    used.name,
                    used.version,
                    used.digest,
                    BACKEND,
                    used.uri,
                )
            )
        return inputs


class _Aside:
    """Where W&B's client may write while it is asked: neither the home folder nor the working folder.

    A folder in the cache, on the disk that files go to. The environment is as it was before and after: a run that is
    started in the same process must not find its data there.
    """

    def __init__(self, base_url: str | None) -> None:
        self._base_url = base_url
        self._lock = threading.Lock()
        self._busy = 0
        self._before: dict[str, str | None] = {}
        self._folder: Path | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While this is open, in any thread, W&B's client is kept aside."""
        with self._lock:
            self._busy += 1
            if self._busy == 1:
                self._set()
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                if self._busy == 0:
                    _restore(self._before)

    def folder_for_one(self) -> Path:
        """A new folder, for one file."""
        return Path(tempfile.mkdtemp(dir=self._root()))

    def forget(self, digest: str) -> None:
        """Remove the copy that W&B's client has kept of a file. Where it keeps it elsewhere, it stays until the end."""
        name = _hex(digest)
        for path in self._root().glob(f"cache/artifacts/obj/*/{name[:2]}/{name[2:]}") if name else ():
            path.unlink(missing_ok=True)

    def _set(self) -> None:
        root = self._root()
        variables = {
            "WANDB_CACHE_DIR": str(root / "cache"),
            "WANDB_DATA_DIR": str(root),
            "WANDB_ARTIFACT_DIR": str(root / "artifacts"),  # files that others refer to
            "WANDB_DIR": str(root),  # the public API makes empty folders there
            "WANDB_SILENT": "true",
            **({"WANDB_BASE_URL": self._base_url} if self._base_url else {}),
        }
        self._before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)

    def _root(self) -> Path:
        if self._folder is None:
            parent = cache_folder() / "scratch"
            parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in parent.glob(f"{SCRATCH}*"):
                with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                    if time.time() - path.stat().st_mtime > STALE_S:
                        shutil.rmtree(path, ignore_errors=True)
            self._folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _refuse_foreign(version: ArtifactVersion, entry: ArtifactManifestEntry) -> None:
    """Only what W&B holds is fetched: a reference may lead to any file of this machine, or to any server."""
    reference = entry.ref
    if reference is not None and urlsplit(reference).scheme == "wandb-artifact":
        try:
            reference = entry.ref_target()  # where it leads to, if that is a reference again
        except ValueError:
            return
    if reference is not None:
        raise TrackerError(
            f"{version.reference}: {entry.path!r} is a reference to {clean(str(reference))}, which W&B does not hold: "
            "fetch it from there"
        )


def _file_info(entry: ArtifactManifestEntry) -> FileInfo:
    if entry.ref is None:
        known = _hex(entry.digest) if not entry.extra.get("alg") else ""
        return FileInfo(entry.size, f"md5:{known}" if known else "")
    if urlsplit(entry.ref).scheme == "wandb-artifact":  # W&B says no size of these
        known = _hex(entry.digest)
        return FileInfo(None, f"md5:{known}" if known else "")
    return FileInfo()


def _hex(digest: str) -> str:
    """The hexadecimal form of a digest in base64; "" for anything that is no MD5."""
    try:
        raw = base64.b64decode(digest, validate=True)
    except ValueError:
        return ""
    return raw.hex() if len(raw) == 16 else ""


def _told_apart(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], int | None, float | None]:
    """Metadata, metrics, step and epoch, which stand in one dictionary in W&B; the reverse of `values.metadata`."""
    metadata = dict(values.unwrapped(given))
    metrics: dict[str, float] = {}
    for key in ("metrics", "unified_tracker/metrics"):
        if isinstance(metadata.get(key), Mapping):
            metrics |= values.finite(metadata.pop(key))
    step = metadata.get("unified_tracker/step", metadata.get("step"))
    epoch = metadata.get("unified_tracker/epoch", metadata.get("epoch"))
    return (
        metadata,
        metrics,
        step if isinstance(step, int) else None,
        float(epoch) if isinstance(epoch, (int, float)) else None,
    )


def _run_id_in(name: str) -> str:
    """Our run id, where the name of an artifact holds it."""
    found = re.fullmatch(r"run-([a-z0-9]{8})-\w+", name)
    return found[1] if found else ""


def _path_of(run: Any) -> str:
    return f"{run.entity}/{run.project}/{run.id}"


def _milliseconds(text: str | None) -> int:
    if not text:
        return 0
    when = text.replace("Z", "+00:00")
    if not re.search(r"[+-]\d\d:\d\d$", when):
        when += "+00:00"  # W&B's times are UTC
    try:
        return int(datetime.fromisoformat(when).timestamp() * 1000)
    except ValueError:
        return 0
