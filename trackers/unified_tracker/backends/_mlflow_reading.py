"""Reading from MLflow what the tracker has stored: artifacts of a run, by name and alias."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import mlflow
import mlflow.artifacts
import msgspec

from unified_tracker._errors import TrackerError
from unified_tracker._reference import ArtifactReference
from unified_tracker.backends._mlflow_artifacts import Version
from unified_tracker.backends._mlflow_tracker import RUN_TAG

RUNS: Final = 1000


class MlflowReading:
    """One tracking server or database, read."""

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._client = mlflow.MlflowClient(tracking_uri=tracking_uri)

    def fetch(self, reference: ArtifactReference, target: Path) -> Path:
        """Download the files of one version.

        Raises:
            TrackerError: There is no such artifact, or the server does not answer.
        """
        try:
            run = self._run_of(reference)
            versions = self._versions(run, reference, target)
            version = next((each for each in versions if _is(each, reference.alias)), None)
            if version is None:
                known = sorted({alias for each in versions for alias in (f"v{each.version}", *each.aliases)})
                raise TrackerError(f"{reference}: no version {reference.alias!r}; there are {', '.join(known)}")
            uri = f"runs:/{run}/{reference.name}/v{version.version}"
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(target), tracking_uri=self._uri))
        except mlflow.MlflowException as error:
            raise TrackerError(f"{reference} cannot be fetched from {self._uri}: {error}") from error

    def _run_of(self, reference: ArtifactReference) -> str:
        """MLflow's id of the run that has made an artifact which is named after its run."""
        head, _, rest = reference.name.partition("-")
        run_id = rest.rpartition("-")[0]
        if head != "run" or not run_id:
            raise TrackerError(f"{reference}: only artifacts of a run (run-<run id>-...) can be fetched so far")
        experiments = [
            each.experiment_id
            for each in self._client.search_experiments()
            if reference.project in {None, each.name, each.experiment_id}
        ]
        if not experiments:
            raise TrackerError(f"{reference}: there is no experiment {reference.project!r} in {self._uri}")
        found = self._client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        if not found:
            raise TrackerError(f"{reference}: no run {run_id!r} in {self._uri}")
        return str(found[0].info.run_id)

    def _versions(self, run: str, reference: ArtifactReference, target: Path) -> list[Version]:
        uri = f"runs:/{run}/{reference.name}/versions.json"
        try:
            path = mlflow.artifacts.download_artifacts(uri, dst_path=str(target), tracking_uri=self._uri)
        except (mlflow.MlflowException, OSError) as error:
            raise TrackerError(f"{reference}: run {run} has no artifact {reference.name!r}") from error
        return msgspec.json.decode(Path(path).read_bytes(), type=list[Version])


def _is(version: Version, alias: str) -> bool:
    return alias == f"v{version.version}" or alias in version.aliases
