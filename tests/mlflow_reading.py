"""Reading a run back through MLflow's own client, for tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import mlflow

ALIAS = "unified_tracker.alias."


class MlflowRun:
    """One run, as MLflow holds it."""

    def __init__(self, uri: str, run_id: str) -> None:
        """Find the run by our run id."""
        self.client = mlflow.MlflowClient(uri)
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        found = self.client.search_runs(experiments, f"tags.`unified_tracker.run_id` = '{run_id}'")
        assert len(found) == 1, f"{len(found)} runs with id {run_id}"
        self.run = found[0]
        self.id: str = self.run.info.run_id

    @property
    def status(self) -> str:
        return str(self.run.info.status)

    @property
    def params(self) -> dict[str, str]:
        return dict(self.run.data.params)

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.run.data.tags)

    def history(self, name: str) -> list[tuple[int, float]]:
        """Step and value of every row of a metric, in the order of steps."""
        return sorted((m.step, m.value) for m in self.client.get_metric_history(self.id, name))

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        return {name: self.history(name) for name in self.run.data.metrics}

    def files(self, folder: str | None = None) -> dict[str, bytes]:
        """Path to content of every artifact file of the run."""
        found: dict[str, bytes] = {}
        for item in self.client.list_artifacts(self.id, folder):
            if item.is_dir:
                found.update(self.files(item.path))
            else:
                found[item.path] = Path(self.client.download_artifacts(self.id, item.path)).read_bytes()
        return found

    def models(self) -> list[Any]:
        """LoggedModels of the run, oldest first."""
        every = self.client.search_logged_models([self.run.info.experiment_id])
        return sorted((m for m in every if m.source_run_id == self.id), key=lambda m: m.creation_timestamp)

    def model_aliases(self) -> dict[str, str]:
        """Alias to the step of the model that has it."""
        return {
            tag.removeprefix(ALIAS): model.params["step"]
            for model in self.models()
            for tag in model.tags
            if tag.startswith(ALIAS)
        }

    def model_weights(self, model: Any) -> dict[str, str]:
        """The same of its weights only: of what the framework has written."""
        return {name: digest for name, digest in self.model_files(model).items() if name.endswith(".pth")}

    def model_files(self, model: Any) -> dict[str, str]:
        """Name to SHA-256 of the files that a LoggedModel holds."""
        # Not by `models:/<id>`: that is resolved with the global tracking URI, whatever is passed.
        uri = {"artifact_uri": model.artifact_location, "tracking_uri": self.client.tracking_uri}
        folder = Path(mlflow.artifacts.download_artifacts(**uri))
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }
