"""Inputs in MLflow: data sets and models that a run was made from, where MLflow's pages show them, and as tags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import mlflow
import msgspec
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

from unified_tracker._inputs import TAG, as_json, identity, of_json
from unified_tracker._naming import path_like
from unified_tracker.backends._mlflow_artifacts import PREFIX, MlflowArtifacts
from unified_tracker.records import Input

CONTEXTS: Final = {"train": "training", "val": "validation", "test": "testing"}
PARENT: Final = "mlflow.parentRunId"
DIGEST_LIMIT: Final = 36  # of a data set, in MLflow
NAME_LIMIT: Final = 500
TAG_LIMIT: Final = 5000
ORIGIN_TAG: Final = PREFIX + "origin"


class MlflowInputs:
    """What one run was made from. The same record again changes nothing."""

    def __init__(self, client: mlflow.MlflowClient, artifacts: MlflowArtifacts, names: Callable[[str], str]) -> None:
        """Take what binds metrics to a model, and what gives a metric its name in MLflow."""
        self._client, self._artifacts, self._names = client, artifacts, names
        self._known: dict[str, dict[str, Input]] = {}
        self._run_id = self._experiment = ""

    def open(self, experiment: str, run_id: str, tags: dict[str, str]) -> None:
        """Set the run; what its tags say is known already."""
        self._experiment, self._run_id = experiment, run_id
        for tag, text in tags.items():
            if tag.startswith(TAG):
                self._known[tag] = {each.role: each for each in of_json(text)}

    def log(self, record: Input) -> None:
        """Store an input: as MLflow's data set or model, and as a tag by which lineage is found."""
        tag = TAG + identity(record)
        roles = self._known.setdefault(tag, {})
        before = roles.get(record.role)
        merged = record if before is None else _merged(before, record)
        if merged.type == "model":
            model = self._model(merged)
            if model is not None:
                merged = msgspec.structs.replace(merged, metadata={**merged.metadata, "model_id": model})
                self._link_model(model)
                found = {self._names(name): value for name, value in merged.metrics.items()}
                self._artifacts.bind_metrics(model, found, merged.step or 0, merged.ts)
        elif before is None:
            self._link_dataset(merged)
        if merged.role == "checkpoint" and merged.backend == "mlflow" and merged.run not in {"", self._run_id}:
            self._client.set_tag(self._run_id, PARENT, merged.run)  # the evaluation stands below the training
        roles[merged.role] = merged
        self._client.set_tag(self._run_id, tag, _text(list(roles.values())))

    @property
    def validation(self) -> tuple[str, str] | None:
        """Name and digest of the validation data, as MLflow has them; None if there is none, or more than one."""
        found = [each for roles in self._known.values() for each in roles.values() if each.role == "val"]
        return _named(found[0]) if len(found) == 1 else None

    def _link_dataset(self, record: Input) -> None:
        source = {"uri": record.uri or (record.file.staged if record.file else record.reference)}
        dataset = Dataset(
            *_named(record),
            "artifact" if record.backend else "local",
            msgspec.json.encode(source | {"reference": record.reference}).decode(),
            profile=msgspec.json.encode(record.metadata).decode(),
        )
        context = InputTag("mlflow.data.context", CONTEXTS.get(record.role, record.role))
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset, [context])])

    def _model(self, record: Input) -> str | None:
        """MLflow's id of a model: of one that it holds, or of one that stands for weights from elsewhere."""
        if record.backend == "mlflow":
            found = record.uri.removeprefix("models:/")
            return found if found.startswith("m-") else None
        try:
            return self._external(record)
        except mlflow.MlflowException as error:
            if error.error_code != "ENDPOINT_NOT_FOUND":
                raise
            return None  # a server before MLflow 3: the tag says it

    def _external(self, record: Input) -> str:
        """A model without files, one in an experiment for the same origin and bytes."""
        name = path_like(record.name or "weights").replace("/", "_").replace(".", "_").replace(":", "_")
        origin = f"{record.reference}\n{record.digest}"
        for model in self._client.search_logged_models([self._experiment], filter_string=f"name = '{name}'"):
            if model.tags.get(ORIGIN_TAG) == origin[:TAG_LIMIT]:
                return str(model.model_id)
        model = self._client.create_logged_model(
            self._experiment,
            name=name,
            tags={ORIGIN_TAG: origin[:TAG_LIMIT]},
            params={"original_url": record.reference[:500], "sha256": record.digest},
            model_type="external",
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _link_model(self, model: str) -> None:
        """Make it an input of the run. The store refuses the same link a second time, so it is looked up."""
        inputs = self._client.get_run(self._run_id).inputs
        if not inputs or model not in {each.model_id for each in inputs.model_inputs or ()}:
            self._client.log_inputs(self._run_id, models=[LoggedModelInput(model)])


def _named(record: Input) -> tuple[str, str]:
    """Name and digest of a data set, as MLflow takes them."""
    return record.name[:NAME_LIMIT], (record.digest or identity(record))[:DIGEST_LIMIT]


def _merged(before: Input, now: Input) -> Input:
    return msgspec.structs.replace(
        now,
        ts=before.ts,
        digest=now.digest or before.digest,
        metadata={**before.metadata, **now.metadata},
        metrics={**before.metrics, **now.metrics},
    )


def _text(records: list[Input]) -> str:
    """As JSON that fits into a tag: without what is known elsewhere, if it must be."""
    shorter: tuple[dict[str, Any], ...] = ({}, {"metadata": {}}, {"metadata": {}, "metrics": {}})
    for smaller in shorter:
        text = as_json([msgspec.structs.replace(each, **smaller) for each in records])
        if len(text) <= TAG_LIMIT:
            return text
    return as_json([_bare(each) for each in records[:1]])


def _bare(record: Input) -> Any:
    return msgspec.structs.replace(record, metadata={}, metrics={}, file=None, reference=record.reference[:1000])
