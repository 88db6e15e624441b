"""Files in MLflow: media, plain files, versioned artifacts, and checkpoints as LoggedModels."""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import mlflow
import mlflow.artifacts
import msgspec
import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from PIL import Image

from unified_tracker._digest import files_digest
from unified_tracker._errors import RejectedError
from unified_tracker._mask import mask_text
from unified_tracker._naming import path_like
from unified_tracker.backends._mlflow_answers import answers
from unified_tracker.backends._mlflow_errors import sort
from unified_tracker.backends._mlflow_registry import LAST, ModelRegistry, best_values
from unified_tracker.records import Artifact, Media

PREFIX: Final = "unified_tracker."
DIGEST_TAG: Final = PREFIX + "digest"
ALIAS_TAG: Final = PREFIX + "alias."
VERSION_TAG: Final = PREFIX + "version"
BYTES_TAG: Final = PREFIX + "bytes"
NAME_TAG: Final = PREFIX + "artifact."  # of a run that has logged one of that name; the value is its type
TABLES_TAG: Final = "mlflow.loggedArtifacts"
IMAGES_TAG: Final = "mlflow.loggedImages"
THUMBNAIL: Final = 256


class Version(msgspec.Struct):
    """One version of an artifact, as `versions.json` lists it."""

    version: int
    digest: str
    type: str
    files: dict[str, str]
    aliases: list[str]
    metadata: dict[str, Any]
    logged_ms: int
    bytes: int | None = None


class MlflowArtifacts:
    """Everything of one run that is a file."""

    def __init__(
        self,
        client: mlflow.MlflowClient,
        run_dir: Path,
        *,
        appends: bool = False,
        registry: ModelRegistry | None = None,
    ) -> None:
        """Set where to. `appends`: the store does not recognise a row that comes again."""
        self._client, self._appends, self._registry = client, appends, registry
        self._scratch = run_dir / "scratch"
        self._experiment = self._run_id = self._uri = ""
        self._has_models = True
        self.notes: list[str] = []

    def open(self, experiment: str, run_id: str, artifact_uri: str) -> None:
        """Set the run."""
        self._experiment, self._run_id, self._uri = experiment, run_id, artifact_uri.rstrip("/")

    def write_file(self, path: str, content: bytes) -> None:
        """Store bytes under a path of the run; the same path again replaces them."""
        with self._folder() as folder:
            local = folder / posixpath.basename(path)
            local.write_bytes(content)
            self._client.log_artifact(self._run_id, str(local), posixpath.dirname(path) or None)

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON object that stands under a path of the run; empty if there is none."""
        content = self._read(path)
        return msgspec.json.decode(content, type=dict[str, Any]) if content is not None else {}

    def log_files(self, files: Mapping[str, Path]) -> None:
        """Plain files of the run, under their own names."""
        for name, path in files.items():
            self._put(name, path)

    def log_media(self, sequence: int, record: Media, name: str, file: Path) -> None:
        """Pictures where MLflow's image grid finds them, tables where its table view does, the rest as files."""
        step = record.step or 0
        stem = f"{name}/step_{step:09d}"
        if record.form == "array":
            self._log_image(sequence, record, name, step, np.load(file, allow_pickle=False))
        elif record.form == "table":
            self.log_table(stem, file.read_bytes())
        else:
            folder = "texts" if record.form == "text" else "figures"
            self.write_file(f"{folder}/{stem}{Path(record.file.path).suffix}", file.read_bytes())

    def log_table(self, stem: str, content: bytes) -> None:
        """A table (JSON: columns, data) where MLflow's table view finds it."""
        path = f"tables/{stem}.json"
        self.write_file(path, content)
        self._extend_tag(TABLES_TAG, {"path": path, "type": "table"})

    def log_version(self, record: Artifact, files: Mapping[str, Path]) -> int:
        """A versioned artifact: `<name>/v<k>/...` with `<name>/versions.json`. Known content is not sent again."""
        assert record.name is not None  # noqa: S101 -- the tracker sorts
        digest, each = files_digest(files)
        versions = self._versions(record.name)
        found = next((version for version in versions if version.digest == digest), None)
        if found is None:
            found = Version(
                _next(known.version for known in versions),
                digest,
                record.type,
                each,
                [],
                dict(record.metadata),
                record.ts,
                _bytes(files),
            )
            self._put_tree(f"{record.name}/v{found.version}", files)
            versions.append(found)
        for alias in dict.fromkeys(("latest", *record.aliases)):
            for other in versions:
                if alias in other.aliases:
                    other.aliases.remove(alias)
            found.aliases.append(alias)
        found.metadata.update(record.metadata)
        self.write_file(f"{record.name}/versions.json", msgspec.json.format(msgspec.json.encode(versions), indent=2))
        self._client.set_tag(self._run_id, NAME_TAG + path_like(record.name), record.type)
        return found.version

    def log_model(
        self,
        record: Artifact,
        metrics: Mapping[str, float],
        files: Mapping[str, Path],
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """A checkpoint as a LoggedModel: metadata as params and tags, metrics bound to it, aliases as tags.

        `dataset`: name and digest of the input on which the metrics were measured.

        The model becomes READY after its files are complete. The same bytes again only move aliases and add metrics.
        """
        assert record.name is not None  # noqa: S101 -- the tracker sorts
        models = self._models(record.name) if self._has_models else None
        if models is None:
            self._log_model_as_version(record, metrics, files)
            return
        digest, each = files_digest(files)
        model = next((model for model in models if model.tags.get(DIGEST_TAG) == digest), None)
        if model is None:
            taken = [known.tags.get(VERSION_TAG, "v-1").removeprefix("v") for known in models]
            model = self._new_model(record, digest, each, _next(map(int, taken)), _bytes(files))
        if str(model.status) != "READY":
            with self._folder() as folder:
                _link_tree(files, folder)
                self._make_servable(folder, model)
                self._client.log_model_artifacts(model.model_id, str(folder))
            self._client.finalize_logged_model(model.model_id, "READY")
        self._link_to_run(model.model_id, record.step or 0)
        self.bind_metrics(model.model_id, metrics, record.step or 0, record.ts, dataset)
        self._move_aliases(model, models, ("latest", *record.aliases))
        if best := [alias for alias in record.aliases if alias.partition("-")[0] == "best"]:
            self._register(model, best, best_values(record))

    def bind_metrics(
        self,
        model_id: str,
        metrics: Mapping[str, float],
        step: int,
        ts: int,
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """Metrics of exactly this model. The store adds them to the run as well, so the run's own row is repeated."""
        rows = []
        for key, value in metrics.items():
            if not math.isfinite(value):
                continue  # not applicable to this model; the run has it
            mine = [row for row in self._history(key) if row.step == step and row.value == value]
            if mine and self._appends:
                continue  # it would stand there twice; the run has it
            rows.append(
                Metric(
                    key, float(value), mine[-1].timestamp if mine else ts, step, model_id, *(dataset or (None, None))
                )
            )
        for start in range(0, len(rows), 1000):
            self._client.log_batch(self._run_id, metrics=rows[start : start + 1000])

    def register_last(self, name: str) -> None:
        """The run ends: its last checkpoint is a version of the registered model too."""
        models = self._models(name) if self._registry is not None and self._has_models else None
        last = next((model for model in models or () if _alias_tag("latest") in model.tags), None)
        if last is not None:
            self._register(last, [LAST], {})

    # ---- inside ------------------------------------------------------------------------------------------------

    def _log_model_as_version(self, record: Artifact, metrics: Mapping[str, float], files: Mapping[str, Path]) -> None:
        """A checkpoint where the server knows no LoggedModels: plain files of the run, aliases as tags of the run."""
        numbers = {name: value for name, value in metrics.items() if math.isfinite(value)}
        metadata = {"step": record.step, "epoch": record.epoch, **record.metadata, "metrics": numbers}
        version = self.log_version(msgspec.structs.replace(record, metadata=metadata), files)
        for alias in ("latest", *record.aliases):
            self._client.set_tag(self._run_id, _alias_tag(alias), f"{record.name}/v{version}")

    def _make_servable(self, folder: Path, model: LoggedModel) -> None:
        """The files that a served model needs; one that cannot have them is stored as it is."""
        from unified_tracker.backends._mlflow_serving import add_serving_files  # for runs with checkpoints

        try:
            why = add_serving_files(folder, model)
        except Exception as error:  # noqa: BLE001 -- the checkpoint goes before
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            self._say(f"checkpoints are stored, but `mlflow models serve` cannot use them: {why}")

    def _register(self, model: LoggedModel, aliases: list[str], values: Mapping[str, str]) -> None:
        """Register, where that is wished. A refusal is said; the checkpoint itself is stored."""
        if self._registry is None:
            return
        tags = {DIGEST_TAG: model.tags[DIGEST_TAG], VERSION_TAG: model.tags[VERSION_TAG]}
        try:
            self._registry.register(model, aliases, values, tags)
        except mlflow.MlflowException as error:
            answer = answers.last()
            forbidden = answer is not None and answer.status == 403  # the model belongs to somebody else
            if not forbidden and not isinstance(sort(error, answer), RejectedError):
                raise
            self._say(f"checkpoints are stored, but the server does not register them: {mask_text(str(error))[:300]}")

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _new_model(
        self, record: Artifact, digest: str, each: Mapping[str, str], version: int, size: int
    ) -> LoggedModel:
        metadata = {"step": record.step, "epoch": record.epoch, **record.metadata}
        return self._client.create_logged_model(
            self._experiment,
            name=record.name,
            source_run_id=self._run_id,
            tags={
                DIGEST_TAG: digest,
                VERSION_TAG: f"v{version}",
                BYTES_TAG: str(size),
                PREFIX + "files": msgspec.json.encode(each).decode()[:5000],
            },
            params={key: str(value)[:6000] for key, value in metadata.items() if value is not None},
            model_type="checkpoint",
        )

    def _link_to_run(self, model_id: str, step: int) -> None:
        """Make the model an output of the run. The store refuses the same link a second time, so it is looked up."""
        outputs = self._client.get_run(self._run_id).outputs
        if not outputs or model_id not in {output.model_id for output in outputs.model_outputs}:
            self._client.log_outputs(self._run_id, [LoggedModelOutput(model_id, step)])

    def _models(self, name: str) -> list[LoggedModel] | None:
        """All versions that this run has made, oldest first; None if the server knows no LoggedModels (before 3.0)."""
        models: list[LoggedModel] = []
        token: str | None = None
        while True:
            try:
                page = self._client.search_logged_models(
                    [self._experiment], filter_string=f"name = '{name}'", max_results=100, page_token=token
                )
            except mlflow.MlflowException as error:
                if error.error_code != "ENDPOINT_NOT_FOUND":
                    raise
                self._has_models = False
                self.notes.append(
                    "the MLflow server is older than 3.0 and has no models: checkpoints are stored as files of the "
                    f"run, in {name}/v<number>, listed in {name}/versions.json"
                    + ("; registered_model_name has no effect" if self._registry is not None else "")
                )
                return None
            models += [model for model in page if model.source_run_id == self._run_id]
            token = page.token
            if not token:
                return sorted(models, key=lambda model: model.creation_timestamp)

    def _history(self, key: str) -> list[Metric]:
        return list(self._client.get_metric_history(self._run_id, key))

    def _move_aliases(self, model: LoggedModel, models: list[LoggedModel], aliases: tuple[str, ...]) -> None:
        """Set first, take away afterwards: a crash in between leaves an alias twice for a moment, never nowhere."""
        tags = {_alias_tag(alias): "true" for alias in aliases}
        self._client.set_logged_model_tags(model.model_id, tags)
        for other in models:
            for tag in tags:
                if other.model_id != model.model_id and tag in other.tags:
                    self._client.delete_logged_model_tag(other.model_id, tag)

    def _versions(self, name: str) -> list[Version]:
        content = self._read(f"{name}/versions.json")
        return msgspec.json.decode(content, type=list[Version]) if content is not None else []

    def _read(self, path: str) -> bytes | None:
        """Content of a file of the run; None if there is none. `MlflowClient`'s own ways need a server of MLflow 3."""
        server = {"tracking_uri": self._client.tracking_uri}
        folder = posixpath.dirname(path)
        items = mlflow.artifacts.list_artifacts(f"{self._uri}/{folder}".rstrip("/"), **server)
        if posixpath.basename(path) not in {posixpath.basename(item.path) for item in items}:
            return None
        with self._folder() as local:
            found = mlflow.artifacts.download_artifacts(f"{self._uri}/{path}", dst_path=str(local), **server)
            return Path(found).read_bytes()

    def _log_image(self, sequence: int, record: Media, name: str, step: int, pixels: Any) -> None:
        """As `MlflowClient.log_image` stores it, but under a name that is the same for every try."""
        image = Image.fromarray(pixels.squeeze())
        unique = hashlib.md5(f"{self._run_id}/{sequence}".encode(), usedforsecurity=False).hexdigest()
        unique = "-".join((unique[:8], unique[8:12], unique[12:16], unique[16:20], unique[20:]))
        stem = f"{name.replace('/', '~')}+step+{step}+timestamp+{record.ts}+{unique}"
        thumbnail = image.copy()
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        with self._folder() as folder:
            image.save(folder / f"{stem}.png")
            thumbnail.save(folder / f"{stem}+compressed.webp")
            self._client.log_artifacts(self._run_id, str(folder), "images")
        self._client.set_tag(self._run_id, IMAGES_TAG, "True")

    def _extend_tag(self, key: str, item: dict[str, str]) -> None:
        items = msgspec.json.decode(self._client.get_run(self._run_id).data.tags.get(key, "[]"))
        if item not in items:
            text = msgspec.json.encode([*items, item]).decode()
            if len(text) <= 5000:  # the oldest limit of a tag; the files are there in any case
                self._client.set_tag(self._run_id, key, text)

    def _put(self, name: str, path: Path) -> None:
        """One file under its name in the artifact; the staged file has another one."""
        with self._folder() as folder:
            local = folder / posixpath.basename(name)
            _link(path, local)
            self._client.log_artifact(self._run_id, str(local), posixpath.dirname(name) or None)

    def _put_tree(self, place: str, files: Mapping[str, Path]) -> None:
        """Files below one folder, as many at once as the client likes."""
        with self._folder() as folder:
            _link_tree(files, folder)
            self._client.log_artifacts(self._run_id, str(folder), place)

    def _folder(self) -> _Scratch:
        return _Scratch(self._scratch)


class _Scratch:
    """A folder for the time of one upload, on the same file system as the staged files."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    def __enter__(self) -> Path:
        self._parent.mkdir(exist_ok=True)
        self._path = Path(tempfile.mkdtemp(dir=self._parent))
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _bytes(files: Mapping[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


def _next(taken: Iterable[int]) -> int:
    """The number of a new version: never one that was removed while newer ones stayed."""
    return max(taken, default=-1) + 1


def _alias_tag(alias: str) -> str:
    return ALIAS_TAG + re.sub(r"[^\w.\-]", "_", alias)


def _link_tree(files: Mapping[str, Path], folder: Path) -> None:
    for name, path in files.items():
        local = folder / name
        local.parent.mkdir(parents=True, exist_ok=True)
        _link(path, local)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
