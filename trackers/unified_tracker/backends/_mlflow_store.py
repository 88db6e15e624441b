"""What an MLflow server holds, for reading: artifacts of runs, models, registered models, and inputs of runs."""

from __future__ import annotations

import posixpath
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from unified_tracker._errors import TrackerError
from unified_tracker._inputs import TAG, identity_of, of_json
from unified_tracker._mask import mask_text, whole_uri
from unified_tracker._naming import path_like
from unified_tracker._reference import RUNS, ArtifactReference
from unified_tracker._store import RunSummary
from unified_tracker._versions import ArtifactVersion, FileInfo, newest_first, some
from unified_tracker.backends._mlflow_artifacts import (
    ALIAS_TAG,
    BYTES_TAG,
    DIGEST_TAG,
    NAME_TAG,
    PREFIX,
    VERSION_TAG,
    Version,
)
from unified_tracker.backends._mlflow_tracker import RUN_TAG  # first: it sets what MLflow reads while it is imported
from unified_tracker.records import Input

# isort: split
import mlflow
from mlflow.entities import LoggedModel, Run, ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

PAGE: Final = 1000
SQLITE: Final = "sqlite:///"
MODELS_PAGE: Final = 100


class MlflowStore:
    """One tracking server or database. Every error of MLflow's becomes a `TrackerError`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Open nothing yet. Takes checked options.

        Raises:
            TrackerError: The database is a file that does not exist: MLflow would make one.
        """
        self._uri = whole_uri("mlflow", "tracking_uri", options["tracking_uri"], "MLFLOW_TRACKING_URI")
        self._shown = options["tracking_uri"]
        file = self._uri.removeprefix(SQLITE).partition("?")[0]
        if self._uri.startswith(SQLITE) and file and ":memory:" not in file and not Path(file).exists():
            raise TrackerError(
                f"there is no MLflow database {file}: ask in the folder of the training, or set MLFLOW_TRACKING_URI"
            )
        self._client = mlflow.MlflowClient(tracking_uri=self._uri)
        self._roots: dict[str, Any] = {}
        self._experiments: dict[str, str] = {}
        self._lock = threading.Lock()

    # ---- the protocol ------------------------------------------------------------------------------------------

    def find(self, reference: ArtifactReference) -> ArtifactVersion:
        with self._told(str(reference)):
            if reference.uri.startswith("models:"):
                return self._by_model_uri(reference)
            if reference.uri:
                return self._by_run_uri(reference)
            found = list(self._named(reference.name, self._experiment_ids(reference.project)))
            return _chosen(reference, found, self._shown)

    def download(self, version: ArtifactVersion, path: str, target: Path) -> None:
        with self._told(str(version.reference)):
            repository = self._repository(version)
            if folder := getattr(repository, "artifact_dir", None):  # a store on this machine: nothing to download
                found = Path(folder) / path
                if found.is_symlink() or not found.is_file():
                    raise TrackerError(f"{version.reference} is refused: {path!r} is no file in {folder}")
                shutil.copyfile(found, target)
                return
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".mlflow-") as folder:
                found = Path(repository.download_artifacts(path, folder))
                if found.is_symlink() or not found.is_file():
                    raise TrackerError(f"{version.reference} is refused: {path!r} is no file")
                found.replace(target)

    def versions(
        self,
        *,
        type: str | None = None,  # noqa: A002 -- the field's word
        project: str | None = None,
        name: str | None = None,
    ) -> Iterator[ArtifactVersion]:
        with self._told("artifacts"):
            experiments = self._experiment_ids(project)
            found = list(self._named(name, experiments)) if name is not None else []
            if name is None and type in {None, "model"}:
                found += [self._of_model(each) for each in self._models(experiments, name) if DIGEST_TAG in each.tags]
            for run in self._runs(experiments, f"tags.`{RUN_TAG}` LIKE '%'") if name is None else ():
                for label, kind in _names(run).items():
                    if type in {None, kind}:
                        found += self._of_run(run, label)
        wanted = [each for each in found if type in {None, each.type}]
        return iter(newest_first(wanted))

    def run(self, id: str) -> RunSummary:  # noqa: A002 -- the field's word
        with self._told(f"run {id}"):
            return self._summary(self._client.get_run(id))

    def users(self, version: ArtifactVersion) -> list[RunSummary]:
        with self._told(str(version.reference)):
            tag = TAG + identity_of(version.backend, version.uri)
            return [self._summary(run) for run in self._runs(self._experiment_ids(None), f"tags.`{tag}` LIKE '%'")]

    def is_registered(self, version: ArtifactVersion) -> bool:
        model = version.uri.removeprefix("models:/")
        if not version.run or not model.startswith("m-"):
            return False
        with self._told(str(version.reference)):
            registered = self._client.search_model_versions(f"run_id = '{version.run}'")
            return any(_model_of(each) == model for each in registered)

    def delete(self, version: ArtifactVersion) -> None:
        with self._told(str(version.reference)):
            if version.uri.startswith("models:/"):
                self._repository(version).delete_artifacts()
                self._client.delete_logged_model(version.uri.removeprefix("models:/"))
                return
            found = RUNS.fullmatch(version.uri)
            if found is None:
                raise TrackerError(f"{version.uri} cannot be deleted: only versions that this library has logged can")
            self._forget_version(found["run"], version)
            self._repository(version).delete_artifacts()

    # ---- references --------------------------------------------------------------------------------------------

    def _named(self, name: str, experiments: Sequence[str]) -> Iterator[ArtifactVersion]:
        """All versions of an artifact, newest last."""
        models = [each for each in self._models(experiments, name) if str(each.status) == "READY"]
        if models:
            yield from sorted(map(self._of_model, models), key=lambda each: each.created_ms)
            return
        tag = NAME_TAG + path_like(name)
        runs = self._runs(experiments, f"tags.`{tag}` LIKE '%'") or self._runs_named_in(name, experiments)
        yield from sorted(
            (version for run in runs for version in self._of_run(run, name)), key=lambda each: each.created_ms
        )

    def _runs_named_in(self, name: str, experiments: Sequence[str]) -> list[Run]:
        """The run in the name of its artifact (run-<run id>-...): artifacts of before 0.2 have no tag."""
        head, _, rest = name.partition("-")
        run_id = rest.rpartition("-")[0]
        return self._runs(experiments, f"tags.`{RUN_TAG}` = '{run_id}'") if head == "run" and run_id else []

    def _by_model_uri(self, reference: ArtifactReference) -> ArtifactVersion:
        name, alias = reference.name, reference.alias
        if not alias:
            return self._of_model(self._client.get_logged_model(name))
        if "@" in reference.uri:
            registered = self._client.get_model_version_by_alias(name, alias)
        elif alias == "latest":
            newest = self._client.search_model_versions(
                f"name = '{name}'", order_by=["version_number DESC"], max_results=1
            )
            if not newest:
                raise TrackerError(f"{reference}: there is no registered model {name!r} in {self._shown}")
            registered = newest[0]
        else:
            registered = self._client.get_model_version(name, alias)
        if model := _model_of(registered):
            return self._of_model(self._client.get_logged_model(model))
        root = self._client.get_model_version_download_uri(name, registered.version)
        with self._lock:
            self._roots[reference.uri] = repository = get_artifact_repository(root, tracking_uri=self._uri)
        return ArtifactVersion(
            "mlflow",
            None,
            name,
            "",
            "model",
            f"{root} {registered.creation_timestamp}",
            reference.uri,
            _listing(repository),
            run=registered.run_id or "",
            created_ms=registered.creation_timestamp,
        )

    def _by_run_uri(self, reference: ArtifactReference) -> ArtifactVersion:
        found = RUNS.fullmatch(reference.uri)
        assert found is not None  # noqa: S101 -- it was parsed by the same expression
        run, path = self._client.get_run(found["run"]), found["path"].rstrip("/")
        items = self._client.list_artifacts(run.info.run_id, posixpath.dirname(path) or None)
        item = next((each for each in items if each.path == path), None)
        if item is None:
            raise TrackerError(f"{reference}: run {run.info.run_id} holds no {path!r}")
        root = f"{run.info.artifact_uri.rstrip('/')}/{path if item.is_dir else posixpath.dirname(path)}".rstrip("/")
        with self._lock:
            self._roots[reference.uri] = repository = get_artifact_repository(root, tracking_uri=self._uri)
        files = _listing(repository) if item.is_dir else {posixpath.basename(path): FileInfo(item.file_size)}
        label = posixpath.dirname(path) if item.is_dir else ""
        known = next((each for each in self._of_run(run, label) if each.uri == reference.uri), None) if label else None
        return known or ArtifactVersion(
            "mlflow",
            self._experiment_name(run.info.experiment_id),
            reference.name,
            "",
            "file",
            "",
            reference.uri,
            files,
            run=run.info.run_id,
            run_id=run.data.tags.get(RUN_TAG, ""),
            created_ms=run.info.start_time,
        )

    # ---- versions ----------------------------------------------------------------------------------------------

    def _of_model(self, model: LoggedModel) -> ArtifactVersion:
        uri = f"models:/{model.model_id}"
        with self._lock:
            self._roots[uri] = model.artifact_location
        try:
            digests = msgspec.json.decode(model.tags.get(PREFIX + "files", "{}"), type=dict[str, str])
        except msgspec.MsgspecError:  # too many files for a tag
            digests = {}
        files = {path: FileInfo(None, f"sha256:{digest}") for path, digest in digests.items()}
        params = dict(model.params)
        step, epoch = params.pop("step", None), params.pop("epoch", None)
        run = self._run_of(model.source_run_id)
        return ArtifactVersion(
            "mlflow",
            self._experiment_name(model.experiment_id),
            model.name,
            model.tags.get(VERSION_TAG, ""),
            "model",
            model.tags.get(DIGEST_TAG, model.model_id),
            uri,
            files or _listing(get_artifact_repository(model.artifact_location, tracking_uri=self._uri)),
            tuple(sorted(tag.removeprefix(ALIAS_TAG) for tag in model.tags if tag.startswith(ALIAS_TAG))),
            params,
            {metric.key: metric.value for metric in model.metrics or ()},
            int(step) if step and step.lstrip("-").isdigit() else None,
            float(epoch) if epoch else None,
            model.source_run_id or "",
            run.data.tags.get(RUN_TAG, "") if run is not None else "",
            model.creation_timestamp,
            int(size) if (size := model.tags.get(BYTES_TAG, "")).isdigit() else None,
        )

    def _of_run(self, run: Run, name: str) -> Iterator[ArtifactVersion]:
        """The versions of an artifact that a run has logged, oldest first."""
        for version in self._listed(run, name):
            yield ArtifactVersion(
                "mlflow",
                self._experiment_name(run.info.experiment_id),
                name,
                f"v{version.version}",
                version.type,
                version.digest,
                f"runs:/{run.info.run_id}/{name}/v{version.version}",
                {path: FileInfo(None, f"sha256:{digest}") for path, digest in version.files.items()},
                tuple(version.aliases),
                version.metadata,
                {
                    k: float(v)
                    for k, v in (version.metadata.get("metrics") or {}).items()
                    if isinstance(v, (int, float))
                },
                version.metadata.get("step"),
                version.metadata.get("epoch"),
                run.info.run_id,
                run.data.tags.get(RUN_TAG, ""),
                version.logged_ms,
                version.bytes,
            )

    def _listed(self, run: Run, name: str) -> list[Version]:
        repository = get_artifact_repository(run.info.artifact_uri, tracking_uri=self._uri)
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = repository.download_artifacts(f"{name}/versions.json", folder)
                return msgspec.json.decode(Path(path).read_bytes(), type=list[Version])
            except (mlflow.MlflowException, OSError, msgspec.MsgspecError):
                return []

    def _forget_version(self, run_id: str, version: ArtifactVersion) -> None:
        run = self._client.get_run(run_id)
        left = [each for each in self._listed(run, version.name) if f"v{each.version}" != version.version]
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "versions.json"
            local.write_bytes(msgspec.json.format(msgspec.json.encode(left), indent=2))
            self._client.log_artifact(run_id, str(local), version.name)

    # ---- the server --------------------------------------------------------------------------------------------

    def _repository(self, version: ArtifactVersion) -> Any:
        """Where the files of a version are. Made once: a data set has thousands of them."""
        with self._lock:
            known = self._roots.get(version.uri)
        if known is None:
            found = RUNS.fullmatch(version.uri)
            if found is not None:
                run = self._client.get_run(found["run"])
                known = f"{run.info.artifact_uri.rstrip('/')}/{unquote(found['path'])}"
            else:
                known = self._client.get_logged_model(version.uri.removeprefix("models:/")).artifact_location
        if isinstance(known, str):
            known = get_artifact_repository(known, tracking_uri=self._uri)
            with self._lock:
                self._roots[version.uri] = known
        return known

    def _models(self, experiments: Sequence[str], name: str | None) -> list[LoggedModel]:
        """Models of that name; none if the server knows no models (before MLflow 3)."""
        if not experiments:
            return []
        wanted = f"name = '{name}'" if name is not None and "'" not in name else None
        found: list[LoggedModel] = []
        token: str | None = None
        while True:
            try:
                page = self._client.search_logged_models(
                    list(experiments), filter_string=wanted, max_results=MODELS_PAGE, page_token=token
                )
            except mlflow.MlflowException as error:
                if error.error_code == "ENDPOINT_NOT_FOUND":
                    return []
                raise
            found += page
            token = page.token
            if not token:
                return found

    def _runs(self, experiments: Sequence[str], wanted: str) -> list[Run]:
        return _every(
            lambda token: self._client.search_runs(
                list(experiments), wanted, ViewType.ACTIVE_ONLY, PAGE, page_token=token
            )
        )

    def _run_of(self, run_id: str | None) -> Run | None:
        if not run_id:
            return None
        with self._lock:
            known = self._roots.get(f"run {run_id}")
        if known is None:
            known = self._client.get_run(run_id)
            with self._lock:
                self._roots[f"run {run_id}"] = known
        return known

    def _summary(self, run: Run) -> RunSummary:
        experiment = run.info.experiment_id
        place = f"#/experiments/{experiment}/runs/{run.info.run_id}"
        inputs: list[Input] = []
        for tag, text in sorted(run.data.tags.items()):
            if tag.startswith(TAG):
                inputs += of_json(text)
        return RunSummary(
            "mlflow",
            run.info.run_id,
            run.data.tags.get(RUN_TAG, ""),
            run.info.run_name or "",
            self._experiment_name(experiment),
            f"{self._shown.rstrip('/')}/{place}" if self._shown.startswith("http") else self._shown,
            run.info.status,
            run.info.start_time or 0,
            tuple(sorted(inputs, key=lambda each: each.ts)),
        )

    def _experiment_ids(self, project: str | None) -> list[str]:
        found = _every(lambda token: self._client.search_experiments(max_results=PAGE, page_token=token))
        self._experiments.update({each.experiment_id: each.name for each in found})
        wanted = [each.experiment_id for each in found if project in {None, each.name, each.experiment_id}]
        if project is not None and not wanted:
            names = some(each.name for each in found)
            raise TrackerError(f"there is no experiment {project!r} in {self._shown}; there are {names}")
        return wanted

    def _experiment_name(self, experiment: str) -> str:
        if experiment not in self._experiments:
            self._experiments[experiment] = self._client.get_experiment(experiment).name
        return self._experiments[experiment]

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except TrackerError:
            raise
        except (mlflow.MlflowException, OSError) as error:
            raise TrackerError(f"{what} cannot be read from {self._shown}: {mask_text(str(error))}") from error


def _model_of(registered: Any) -> str | None:
    """MLflow's id of the model behind a registered version; None for one that was registered from plain files."""
    source = str(registered.source)
    return registered.model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else None)


def _numbers(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        return {}
    return {str(name): float(value) for name, value in metrics.items() if isinstance(value, (int, float))}


def _every(page_of: Callable[[str | None], Any]) -> list[Any]:
    found: list[Any] = []
    token: str | None = None
    while True:
        page = page_of(token)
        found += page
        token = page.token
        if not token:
            return found


def _chosen(reference: ArtifactReference, found: Sequence[ArtifactVersion], place: str) -> ArtifactVersion:
    """The version that is meant, of all with that name, oldest first. Of several runs the newest one's alias counts."""
    if not found:
        raise TrackerError(f"{reference}: there is no artifact {reference.name!r} in {place}")
    if reference.alias == "latest":
        return next((each for each in reversed(found) if "latest" in each.aliases), found[-1])
    matching = [each for each in found if reference.alias in {each.version, *each.aliases}]
    if not matching:
        known = some(word for each in found for word in (each.version, *each.aliases))
        raise TrackerError(f"{reference}: no version {reference.alias!r}; there are {known}")
    if reference.alias == matching[-1].version and len({each.digest for each in matching}) > 1:
        uris = ", ".join(each.uri for each in matching)
        raise TrackerError(f"{reference}: several runs have such a version; say which: {uris}")
    return matching[-1]


def _names(run: Run) -> dict[str, str]:
    """Name to type of the versioned artifacts of a run."""
    return {tag.removeprefix(NAME_TAG): kind for tag, kind in run.data.tags.items() if tag.startswith(NAME_TAG)}


def _listing(repository: Any, folder: str | None = None) -> dict[str, FileInfo]:
    files: dict[str, FileInfo] = {}
    for item in repository.list_artifacts(folder):
        if item.is_dir:
            files |= _listing(repository, item.path)
        else:
            files[item.path] = FileInfo(item.file_size)
    return files
