"""The MLflow tracker. Runs in the lane's process only; the one module that imports MLflow."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from unified_tracker._errors import TransientError
from unified_tracker._mask import whole_uri
from unified_tracker._naming import Renamer, path_like
from unified_tracker._rundir import RunDirectory
from unified_tracker._tracker import Address, RunInfo
from unified_tracker._values import flatten
from unified_tracker.backends._mlflow_artifacts import MlflowArtifacts
from unified_tracker.backends._mlflow_errors import sorted_errors
from unified_tracker.backends._mlflow_registry import ModelRegistry
from unified_tracker.records import Artifact, Entry, Input, Media, Metrics, Params, Status, Tags

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
from mlflow.entities import Metric, Param, RunTag, ViewType  # noqa: E402

from unified_tracker.backends._mlflow_inputs import MlflowInputs  # noqa: E402
from unified_tracker.backends._mlflow_predictions import MlflowPredictions  # noqa: E402

if TYPE_CHECKING:
    from unified_tracker.predictions._report import PredictionReport

RUN_TAG: Final = "unified_tracker.run_id"
DUPLICATE_TAG: Final = "unified_tracker.duplicate_of"
NAME_TAG: Final = "unified_tracker.name."
CANARY: Final = "unified_tracker.canary"
NONFINITE_TAG: Final = "unified_tracker.nonfinite."
# MLflow's pages open an experiment as one of language models unless it says what it is.
TRAINING_PAGES: Final = {"mlflow.experimentKind": "custom_model_development"}
METRICS_A_CALL: Final = 1000
PARAMS_A_CALL: Final = 100
PARAM_LIMIT: Final = 6000
TAG_LIMIT: Final = 5000
NAME_LIMIT: Final = 250
PARAMS_FILE: Final = "params.json"
LARGEST: Final = 1.7976931348623157e308  # what MLflow's store makes of an infinity
INT64: Final = range(-(2**63), 2**63)
Identity = tuple[str, int, int, float | None]


class MlflowTracker:
    """MLflow, by `MlflowClient` alone: no global state of `mlflow` is touched.

    What has been taken before is recognised: the run by its tag, a metric by the store's primary key (key, step,
    timestamp, value), parameters by value, artifacts by their path or digest.
    """

    rebuilds = False

    def __init__(self, run_dir: Path, options: Mapping[str, Any]) -> None:
        self._options = options
        self._run_dir = run_dir
        self._uri: str = options["tracking_uri"]
        whole = whole_uri("mlflow", "tracking_uri", self._uri, "MLFLOW_TRACKING_URI")
        self._client = mlflow.MlflowClient(tracking_uri=whole)
        self._names = Renamer(path_like, NAME_LIMIT - len(NAME_TAG))  # its tag must fit too
        self._published_names: set[str] = set()
        self._params: dict[str, str] = {}
        self._all_params: dict[str, Any] | None = None
        self._nonfinite: dict[str, set[str]] = defaultdict(set)
        self._last_row: Metric | None = None
        self._arrived: set[tuple[Identity, Identity, int]] = set()  # requests of the call that is being repeated
        self._refused: tuple[Identity, Identity, int] | None = None
        self._stored: dict[str, set[Identity]] = {}
        self._appends = whole.partition(":")[0] in {"file", whole}  # a folder: what is sent twice stands there twice
        self._repeating = {"finite", "rest"}
        self._held = 0
        name = options.get("registered_model_name")
        registry = ModelRegistry(self._client, name) if name else None
        self._artifacts = MlflowArtifacts(self._client, run_dir, appends=self._appends, registry=registry)
        self._predictions = MlflowPredictions(self._client, self._artifacts)
        self._inputs = MlflowInputs(self._client, self._artifacts, self._names)
        self._own_id = self._run_id = self._experiment_id = ""

    @sorted_errors
    def open(self, run: RunInfo) -> Address:
        self._own_id = run.id
        if run_id := self._options.get("run_id"):
            self._run_id = run_id
            found = self._client.get_run(run_id)
            self._set_tags({RUN_TAG: run.id})
        elif known := self._known_run():
            self._run_id = known
            found = self._client.get_run(known)
        else:
            found = self._found_or_created(run)
        self._run_id = found.info.run_id
        if found.info.lifecycle_stage == "deleted":
            raise TransientError(self._deleted())
        if found.info.status != "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")
        if run.name and found.info.run_name != run.name and not self._options.get("run_id"):
            self._client.update_run(self._run_id, name=run.name)
        self._set_tags({**_description(run), **run.tags})
        self._params = dict(found.data.params)
        for tag, words in found.data.tags.items():
            if tag.startswith(NONFINITE_TAG):
                self._nonfinite[tag.removeprefix(NONFINITE_TAG)].update(words.split(", "))
        self._experiment_id = found.info.experiment_id
        self._artifacts.open(found.info.experiment_id, self._run_id, found.info.artifact_uri)
        self._inputs.open(found.info.experiment_id, self._run_id, dict(found.data.tags))
        return self._address(found.info.experiment_id)

    def gone(self) -> str | None:
        """Why the run takes nothing any more; None if it is there, or nobody can say."""
        if not self._run_id:
            return None
        try:
            found = self._client.get_run(self._run_id)
        except mlflow.MlflowException as error:
            missing = error.error_code == "RESOURCE_DOES_NOT_EXIST"
            return (
                f"run {self._run_id} is not in {self._uri}. Everything is kept; to deliver it into a new run, delete "
                f"{self._run_dir / 'lanes' / 'mlflow.*'} and run `unified-tracker sync`"
                if missing
                else None
            )
        return self._deleted() if found.info.lifecycle_stage == "deleted" else None

    @sorted_errors
    def canary(self, entries: Sequence[Entry]) -> None:
        """Write again what the run has already. Raises for files: a store that fails now may take them tomorrow.

        A run that has no metric yet gets one that says what it is: a row too many where the alternative is that
        everything behind a value at which the server fails waits for ever.
        """
        self._set_tags({RUN_TAG: self._own_id})
        for entry in entries:
            if isinstance(entry.record, Metrics):
                self._client.log_batch(self._run_id, metrics=[self._known_row(entry.record.ts)])
            elif not isinstance(entry.record, (Params, Tags)):
                raise TransientError("nothing is known of the artifact store")

    @sorted_errors
    def log_metrics(self, entries: Sequence[Entry]) -> None:
        finite: list[Metric] = []
        rest: list[Metric] = []
        flags: dict[str, str] = {}
        for entry in entries:
            record = entry.record
            assert isinstance(record, Metrics)  # noqa: S101 -- the lane groups by kind
            step = _nearest_step(record.bad_step) if record.step is None else record.step
            for name, value in record.values.items():
                number = float(value)
                metric = Metric(self._names(name), number, record.ts, step)
                if math.isfinite(number):
                    finite.append(metric)
                    continue
                rest.append(metric)
                seen = self._nonfinite[metric.key]
                if str(number) not in seen:
                    seen.add(str(number))
                    flags[NONFINITE_TAG + metric.key] = ", ".join(sorted(seen))
        self._publish_names()
        self._set_tags(flags)
        # Old servers refuse a whole batch for ever when a NaN in it comes twice: NaNs travel apart.
        for kind, batch in (("finite", finite), ("rest", rest)):
            for start in range(0, len(batch), METRICS_A_CALL):
                rows = batch[start : start + METRICS_A_CALL]
                if self._appends:
                    self._append_rows(kind, rows)
                else:
                    self._log_rows(rows)
        self._arrived.clear()
        if finite:
            self._last_row = finite[-1]
        self._held = entries[-1].sequence

    @sorted_errors
    def log_params(self, entries: Sequence[Entry]) -> None:
        changes: dict[str, str] = {}
        new: dict[str, str] = {}
        for entry in entries:
            record = entry.record
            assert isinstance(record, Params)  # noqa: S101 -- the lane groups by kind
            self._all_params = _merged(self._all_params or self._artifacts.read_json(PARAMS_FILE), record.values)
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
            self._artifacts.log_model(record, metrics, files, self._inputs.validation)
        elif record.name is None:
            self._artifacts.log_files(files)
        else:
            self._artifacts.log_version(record, files)
        self._publish_names()
        self._held = entry.sequence

    @sorted_errors
    def log_predictions(self, entry: Entry, report: PredictionReport) -> None:
        """Store an evaluation of the sample images."""
        self._predictions.log(self._run_id, self._experiment_id, entry, report)
        self._held = entry.sequence

    @sorted_errors
    def log_input(self, entry: Entry) -> None:
        """Store something that the run was made from."""
        record = entry.record
        assert isinstance(record, Input)  # noqa: S101 -- the lane sorts by kind
        self._inputs.log(record)
        self._held = entry.sequence

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know, once."""
        return self._artifacts.notes

    def held(self) -> int:
        return self._held

    @sorted_errors
    def close(self, status: Status, ended_ms: int) -> None:
        if not self._options.get("run_id"):
            experiment = self._client.get_run(self._run_id).info.experiment_id
            self._end_strays(self._runs_of(experiment, self._own_id))
        self._artifacts.register_last(f"run-{self._own_id}-model")
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

    def _known_run(self) -> str | None:
        """MLflow's id of the run, if a lane of this run directory has opened it at this address before."""
        state = RunDirectory(self._run_dir).lane_state("mlflow")
        if state is None or state.address is None or not state.address.url.startswith(self._uri.rstrip("/")):
            return None
        return state.address.id

    def _found_or_created(self, run: RunInfo) -> Any:
        """The run with our tag. An answer that is lost, or late, can leave several: the others are ended."""
        experiment = self._experiment(run.project)
        found = self._runs_of(experiment, run.id)
        mine = [each for each in found if DUPLICATE_TAG not in each.data.tags]
        if not mine:
            tags = {RUN_TAG: run.id, **_description(run)}
            return self._client.create_run(experiment, start_time=run.created_ms, tags=tags, run_name=run.name)
        used = min(mine, key=lambda each: (each.info.lifecycle_stage == "deleted", _untouched(each), each.info.run_id))
        self._run_id = used.info.run_id
        self._end_strays(found)
        return used

    def _runs_of(self, experiment: str, own_id: str) -> list[Any]:
        return list(self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{own_id}'", ViewType.ALL, 100))

    def _end_strays(self, found: Sequence[Any]) -> None:
        """End runs that were created by a request whose answer never came; our tag goes last, by it they are found."""
        for stray in found:
            known = DUPLICATE_TAG in stray.data.tags
            if stray.info.run_id == self._run_id or not (known or _untouched(stray)):
                continue
            if stray.info.lifecycle_stage != "deleted":
                self._client.set_tag(stray.info.run_id, DUPLICATE_TAG, self._run_id)
                self._client.set_terminated(stray.info.run_id, status="KILLED")
                self._client.delete_tag(stray.info.run_id, RUN_TAG)

    def _log_rows(self, rows: Sequence[Metric]) -> None:
        """One request. Servers before MLflow 3.15 refuse it for ever if it holds what they have: NaN, or 100 names."""
        mark = (_identity(rows[0]), _identity(rows[-1]), len(rows))
        if mark in self._arrived:
            return
        if mark != self._refused:
            try:
                self._client.log_batch(self._run_id, metrics=rows)
                self._arrived.add(mark)
                return
            except mlflow.MlflowException as error:
                if "IntegrityError" not in str(error):
                    raise
            self._refused, self._stored = mark, {}
        missing = self._not_stored(rows)
        self._refused = None
        if missing:
            self._client.log_batch(self._run_id, metrics=missing)
        self._arrived.add(mark)

    def _append_rows(self, kind: str, rows: Sequence[Metric]) -> None:
        """One request to a store of text files: what it has already is left out, for as long as there is such.

        Rows come in the order of the journal, so behind the first one that is missing everything of its kind is.
        """
        if kind in self._repeating:
            rows = self._not_stored(rows)
            if not rows:
                return
            self._repeating.discard(kind)
            if not self._repeating:
                self._stored = {}
        try:
            self._client.log_batch(self._run_id, metrics=rows)
        except mlflow.MlflowException:
            self._repeating, self._stored = {"finite", "rest"}, {}  # some of them may stand there now
            raise

    def _known_row(self, ts: int) -> Metric:
        """A row that the run has, or that nothing can be wrong with; the same one each time."""
        if self._last_row is None:
            run = self._client.get_run(self._run_id)
            for key in [key for key, value in run.data.metrics.items() if math.isfinite(value)]:
                self._last_row = self._client.get_metric_history(self._run_id, key)[-1]
                if math.isfinite(self._last_row.value):
                    return self._last_row
            return Metric(CANARY, 0.0, ts, 0)
        return self._last_row

    def _not_stored(self, rows: Sequence[Metric]) -> list[Metric]:
        """Rows that the run does not have. What has been read is kept: one of a hundred requests may fail."""
        for key in {row.key for row in rows} - set(self._stored):
            self._stored[key] = {_identity(row) for row in self._client.get_metric_history(self._run_id, key)}
        return [row for row in rows if _identity(row) not in self._stored[row.key]]

    def _deleted(self) -> str:
        return (
            f"run {self._run_id} was deleted in MLflow; everything is kept. Restore it "
            f"(`mlflow runs restore --run-id {self._run_id}`, or in MLflow's pages) and run `unified-tracker sync`"
        )

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

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        pairs = [RunTag(_tag_name(key), _short(value, TAG_LIMIT)) for key, value in tags.items()]
        for start in range(0, len(pairs), PARAMS_A_CALL):
            self._client.log_batch(self._run_id, tags=pairs[start : start + PARAMS_A_CALL])


_tag_name: Final = Renamer(path_like, NAME_LIMIT)


def _description(run: RunInfo) -> dict[str, str]:
    return {"mlflow.note.content": run.description} if run.description else {}


def _untouched(run: Any) -> bool:
    """True for a run that was created and nothing else: no copy that somebody has made of ours."""
    return run.info.status == "RUNNING" and not run.data.metrics and not run.data.params


def _identity(row: Metric) -> Identity:
    """What the store takes for the same row."""
    value = None if math.isnan(row.value) else min(max(row.value, -LARGEST), LARGEST)
    return row.key, row.step, row.timestamp, value


def _nearest_step(given: str | None) -> int:
    """A step for what was no 64-bit integer; it depends on nothing else, so that a replay gives the same."""
    try:
        number = float((given or "").strip("'"))
        return min(max(int(number), INT64.start), INT64.stop - 1)
    except (ValueError, OverflowError):
        return 0


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
