"""Registered models: the best checkpoints and the last one, under one name for whoever uses them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import mlflow
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion

from unified_tracker._naming import Renamer
from unified_tracker.records import Artifact

VALUE_TAG: Final = "unified_tracker.value."
LAST: Final = "last"  # MLflow keeps "latest" for itself


class ModelRegistry:
    """One registered model. A model that comes again is found by its source, and only aliases move."""

    def __init__(self, client: mlflow.MlflowClient, name: str) -> None:
        """Set the name; nothing is created before there is a version."""
        self._client, self._name = client, name

    def register(
        self, model: LoggedModel, aliases: Iterable[str], values: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Make a model a version, unless it is one, and move aliases to it.

        Args:
            model: A LoggedModel whose files are complete.
            aliases: As checkpoints have them: "best", "best-bbox.AP", "last".
            values: Of those that a metric has given: `best_values`. An alias stays with the version of another run
                whose value of the same metric is better.
            tags: Of a new version.
        """
        version = self._known(model) or self._created(model, values, tags)
        for alias in aliases:
            if alias not in values or not self._is_beaten(alias, model, values[alias]):
                self._client.set_registered_model_alias(self._name, registry_alias(alias), version.version)

    def _known(self, model: LoggedModel) -> ModelVersion | None:
        found = self._client.search_model_versions(f"source_path = '{_source(model)}'")
        return next((each for each in found if each.name == self._name), None)

    def _created(self, model: LoggedModel, values: Mapping[str, str], tags: Mapping[str, str]) -> ModelVersion:
        try:
            self._client.create_registered_model(self._name)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        numbers = {VALUE_TAG + registry_alias(alias): value for alias, value in values.items()}
        source = _source(model)
        return self._client.create_model_version(
            self._name, source, model.source_run_id, {**tags, **numbers}, model_id=model.model_id
        )

    def _is_beaten(self, alias: str, model: LoggedModel, value: str) -> bool:
        """Whether another run's version has the alias with a better value."""
        try:
            holder = self._client.get_model_version_by_alias(self._name, registry_alias(alias))
        except mlflow.MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            return False  # nobody has it
        held = holder.tags.get(VALUE_TAG + registry_alias(alias), "")
        return holder.run_id != model.source_run_id and _better(held, value)


_plain: Final = Renamer(lambda text: re.sub(r"[^\w\-]", "_", text, flags=re.ASCII), 255)


def registry_alias(alias: str) -> str:
    """An alias as MLflow's registry takes it, which refuses dots: "best-bbox.AP" becomes "best-bbox_AP"."""
    return _plain(alias.replace(".", "_"))


def best_values(record: Artifact) -> dict[str, str]:
    """Of the aliases that a metric has given to a checkpoint: metric and value, "bbox.AP=41.2"."""
    found: dict[str, str] = {}
    for alias in record.aliases:
        head, _, metric = alias.partition("-")
        if head != "best":
            continue
        metric = metric or str(record.metadata.get("best_metric") or "")
        for name, value in record.metrics.items():
            if metric in {name.replace("/", "."), name.removeprefix("val/").replace("/", ".")}:
                found[alias] = f"{metric}={float(value)!r}"
    return found


def _better(held: str, new: str) -> bool:
    """Whether a version has the same metric, with a better value. Smaller is better for losses and errors."""
    metric, _, value = held.rpartition("=")
    other, _, mine = new.rpartition("=")
    if metric != other:
        return False
    smaller = "loss" in metric.lower() or "error" in metric.lower()
    return float(value) < float(mine) if smaller else float(value) > float(mine)


def _source(model: LoggedModel) -> str:
    return f"models:/{model.model_id}"
