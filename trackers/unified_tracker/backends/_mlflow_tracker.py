"""The MLflow tracker. Runs in the lane's process only; the one module that imports MLflow."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from unified_tracker._naming import Renamer, path_like
from unified_tracker._tracker import Address, RunInfo
from unified_tracker._values import flatten
from unified_tracker.backends._mlflow_artifacts import MlflowArtifacts
from unified_tracker.backends._mlflow_errors import sorted_errors
from unified_tracker.records import Artifact, Entry, Media, Metrics, Params, Status, Tags

# MLflow repeats requests by itself for minutes, run creation included, which makes ghost runs: the lane repeats.
SETTINGS: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
for _key, _value in SETTINGS.items():
    os.environ.setdefault(_key, _value)
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

import mlflow  # noqa: E402 -- reads its settings while it is imported
from mlflow.entities import Metric, Param, RunTag  # noqa: E402

RUN_TAG: Final = "unified_tracker.run_id"
NAME_TAG: Final = "unified_tracker.name."
# MLflow's pages open an experiment as one of language models unless it says what it is.
TRAINING_PAGES: Final = {"mlflow.experimentKind": "custom_model_development"}
METRICS_A_CALL: Final = 1000
PARAMS_A_CALL: Final = 100
PARAM_LIMIT: Final = 6000
TAG_LIMIT: Final = 5000
NAME_LIMIT: Final = 250
PARAMS_FILE: Final = "params.json"


class MlflowTracker:
    """MLflow, by `MlflowClient` alone: no global state of `mlflow` is touched.

    What has been taken before is recognised: the run by its tag, a metric by the store's primary key (key, step,
    timestamp, value), parameters by value, artifacts by their path or digest.
    """

    rebuilds = False

    def __init__(self, run_dir: Path, options: Mapping[str, Any]) -> None:
        self._options = options
        self._uri: str = options["tracking_uri"]
        self._client = mlflow.MlflowClient(tracking_uri=self._uri)
        self._names = Renamer(path_like, NAME_LIMIT - len(NAME_TAG))  # its tag must fit too
        self._published_names: set[str] = set()
        self._params: dict[str, str] = {}
        self._all_params: dict[str, Any] = {}
        self._nonfinite: dict[str, int] = defaultdict(int)
        self._last_step = 0
        self._held = 0
        self._artifacts = MlflowArtifacts(self._client, run_dir)
        self._run_id = ""

    @sorted_errors
    def open(self, run: RunInfo) -> Address:
        if run_id := self._options.get("run_id"):
            found = self._client.get_run(run_id)
            self._set_tags({RUN_TAG: run.id}, found.info.run_id)
        else:
            experiment = self._experiment(run.project)
            found = self._find(experiment, run.id) or self._client.create_run(
                experiment, start_time=run.created_ms, tags={RUN_TAG: run.id, **_description(run)}, run_name=run.name
            )
        self._run_id = found.info.run_id
        if found.info.status != "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")
        if run.name and found.info.run_name != run.name and not self._options.get("run_id"):
            self._client.update_run(self._run_id, name=run.name)
        self._set_tags({**_description(run), **run.tags})
        self._params = dict(found.data.params)
        self._artifacts.open(found.info.experiment_id, self._run_id)
        return self._address(found.info.experiment_id)

    @sorted_errors
    def log_metrics(self, entries: Sequence[Entry]) -> None:
        finite: list[Metric] = []
        rest: list[Metric] = []
        for entry in entries:
            record = entry.record
            assert isinstance(record, Metrics)  # noqa: S101 -- the lane groups by kind
            step = self._last_step if record.step is None else record.step
            self._last_step = step
            for name, value in record.values.items():
                number = float(value)
                metric = Metric(self._names(name), number, record.ts, step)
                if math.isfinite(number):
                    finite.append(metric)
                else:
                    rest.append(metric)
                    self._nonfinite[metric.key] += 1
        self._publish_names()
        # Old servers refuse a whole batch for ever when a NaN in it comes twice: NaNs travel apart.
        for batch in (finite, rest):
            for start in range(0, len(batch), METRICS_A_CALL):
                self._client.log_batch(self._run_id, metrics=batch[start : start + METRICS_A_CALL])
        if rest:
            self._set_tags({f"unified_tracker.nonfinite.{m.key}": str(self._nonfinite[m.key]) for m in rest})
        self._held = entries[-1].sequence

    @sorted_errors
    def log_params(self, entries: Sequence[Entry]) -> None:
        changes: dict[str, str] = {}
        new: dict[str, str] = {}
        for entry in entries:
            record = entry.record
            assert isinstance(record, Params)  # noqa: S101 -- the lane groups by kind
            self._all_params = _merged(self._all_params, record.values)
            for name, value in flatten(record.values).items():
                key, text = self._names(name), _short(_text(value), PARAM_LIMIT, PARAMS_FILE)
                known = new.get(key, self._params.get(key))
                if known is None:
                    new[key] = text
                elif known != text:
                    changes[f"unified_tracker.param_changed.{key}.{entry.sequence}"] = text
        pairs = [Param(key, value) for key, value in new.items()]
        for start in range(0, len(pairs), PARAMS_A_CALL):
            self._client.log_batch(self._run_id, params=pairs[start : start + PARAMS_A_CALL])
        self._params.update(new)
        self._set_tags(changes)
        self._publish_names()
        self._artifacts.write_file(PARAMS_FILE, msgspec.json.format(msgspec.json.encode(self._all_params), indent=2))
        self._held = entries[-1].sequence

    @sorted_errors
    def set_tags(self, entries: Sequence[Entry]) -> None:
        tags: dict[str, str] = {}
        for entry in entries:
            record = entry.record
            assert isinstance(record, Tags)  # noqa: S101 -- the lane groups by kind
            tags.update(record.values)
        self._set_tags(tags)
        self._held = entries[-1].sequence

    @sorted_errors
    def log_media(self, entry: Entry, file: Path) -> None:
        record = entry.record
        assert isinstance(record, Media)  # noqa: S101 -- the lane sorts by kind
        self._artifacts.log_media(entry.sequence, record, self._names(record.name), file)
        self._publish_names()
        self._held = entry.sequence

    @sorted_errors
    def log_artifact(self, entry: Entry, files: Mapping[str, Path]) -> None:
        record = entry.record
        assert isinstance(record, Artifact)  # noqa: S101 -- the lane sorts by kind
        if record.type == "model" and record.name is not None:
            metrics = {self._names(name): float(value) for name, value in record.metrics.items()}
            self._artifacts.log_model(record, metrics, files)
        elif record.name is None:
            self._artifacts.log_files(files)
        else:
            self._artifacts.log_version(entry.sequence, record, files)
        self._publish_names()
        self._held = entry.sequence

    def held(self) -> int:
        return self._held

    @sorted_errors
    def close(self, status: Status, ended_ms: int) -> None:
        if self._options.get("owned", True):
            self._client.set_terminated(self._run_id, status=status, end_time=ended_ms)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _experiment(self, project: str | None) -> str:
        if project is None and (by_id := os.environ.get("MLFLOW_EXPERIMENT_ID")):
            return by_id
        name = project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                location = self._options.get("artifact_location")
                return str(self._client.create_experiment(name, location, tags=TRAINING_PAGES))
            except mlflow.MlflowException:
                found = self._client.get_experiment_by_name(name)  # somebody else was faster
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find(self, experiment: str, run_id: str) -> Any:
        runs = self._client.search_runs(
            [experiment], f"tags.`{RUN_TAG}` = '{run_id}'", order_by=["attributes.start_time ASC"], max_results=1
        )
        return runs[0] if runs else None

    def _address(self, experiment: str) -> Address:
        place = f"#/experiments/{experiment}/runs/{self._run_id}"
        if self._uri.startswith("http"):
            return Address(self._run_id, f"{self._uri.rstrip('/')}/{place}")
        look = f"mlflow ui --backend-store-uri {self._uri}, then http://127.0.0.1:5000/{place}"
        return Address(self._run_id, self._uri, look)

    def _publish_names(self) -> None:
        new = {k: v for k, v in self._names.changed().items() if k not in self._published_names}
        self._set_tags({f"{NAME_TAG}{mapped}": original for mapped, original in new.items()})
        self._published_names.update(new)

    def _set_tags(self, tags: Mapping[str, str], run_id: str = "") -> None:
        pairs = [RunTag(_tag_name(key), _short(value, TAG_LIMIT)) for key, value in tags.items()]
        for start in range(0, len(pairs), PARAMS_A_CALL):
            self._client.log_batch(run_id or self._run_id, tags=pairs[start : start + PARAMS_A_CALL])


_tag_name: Final = Renamer(path_like, NAME_LIMIT)


def _description(run: RunInfo) -> dict[str, str]:
    return {"mlflow.note.content": run.description} if run.description else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _short(text: str, limit: int, whole: str = "") -> str:
    if len(text) <= limit:
        return text
    hint = f"... [{len(text)} characters" + (f", all in {whole}]" if whole else "]")
    return text[: limit - len(hint)] + hint


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = _merged(before, value)
        else:
            result[key] = value
    return result
