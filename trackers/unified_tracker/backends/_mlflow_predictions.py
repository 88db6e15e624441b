"""Predictions in MLflow: the page where the artifact view finds it, tables, figures, and the sample as a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import mlflow
import msgspec
from mlflow.entities import Dataset, DatasetInput, InputTag

from unified_tracker._digest import files_digest
from unified_tracker._naming import path_like
from unified_tracker.backends._mlflow_artifacts import PREFIX, MlflowArtifacts
from unified_tracker.records import Artifact, Entry, Predictions

if TYPE_CHECKING:
    from unified_tracker.predictions._report import PredictionReport

SAMPLE_TAG: Final = PREFIX + "sample."  # and the digest of the content; the value says where it is stored
OVERVIEW: Final = "predictions/index.html"
DIGEST_LIMIT: Final = 36  # of a data set, in MLflow


class MlflowPredictions:
    """What one run has said about its sample of validation images."""

    def __init__(self, client: mlflow.MlflowClient, artifacts: MlflowArtifacts) -> None:
        self._client, self._artifacts = client, artifacts
        self._sample = ""

    def log(self, run_id: str, experiment: str, entry: Entry, report: PredictionReport) -> None:
        """Store one evaluation. A second time changes nothing: every part has one place, versions go by content."""
        record = entry.record
        assert isinstance(record, Predictions)  # noqa: S101 -- the lane sorts by kind
        if self._sample != report.sample_digest:
            self._log_sample(run_id, experiment, record, report)
            self._sample = report.sample_digest
        self._artifacts.log_version(report.artifact, report.files)
        self._artifacts.log_files({OVERVIEW: report.overview})
        step = record.step or 0
        folder = path_like(record.split)
        for name, path in report.figures.items():
            self._artifacts.log_files({f"figures/{folder}/{name}/step_{step:09d}{path.suffix}": path})
        for name, table in report.tables.items():
            self._artifacts.log_table(f"{folder}/predictions/{name}/step_{step:09d}", msgspec.json.encode(table))

    def _log_sample(self, run_id: str, experiment: str, record: Predictions, report: PredictionReport) -> None:
        """Store the sample as `<dataset>-val`, unless a run of the experiment holds the same; make it an input."""
        files = report.sample_files
        digest, _ = files_digest(files)
        tag = SAMPLE_TAG + digest[:16]
        uri = self._stored(experiment, tag)
        if uri is None:
            name = path_like(f"{report.sample.dataset}-val").replace("/", "_")
            metadata = {"images": len(report.sample.images), "classes": len(report.sample.classes), "sample": digest}
            version = self._artifacts.log_version(Artifact(record.ts, name, "dataset", (), (), metadata), files)
            uri = f"runs:/{run_id}/{quote(name)}/v{version}"
        self._client.set_tag(run_id, tag, uri)
        profile = {"num_images": len(report.sample.images), "num_objects": report.objects}
        dataset = Dataset(
            f"{report.sample.dataset}-val"[:500],
            digest[:DIGEST_LIMIT],
            "artifact",
            msgspec.json.encode({"uri": uri}).decode(),
            profile=msgspec.json.encode(profile).decode(),
        )
        context = InputTag("mlflow.data.context", "validation")
        self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, [context])])

    def _stored(self, experiment: str, tag: str) -> str | None:
        """Where a run that has not been deleted holds the same sample."""
        for run in self._client.search_runs([experiment], f"tags.`{tag}` LIKE 'runs:/%'", max_results=20):
            uri = str(run.data.tags[tag])
            holder = uri.removeprefix("runs:/").partition("/")[0]
            if holder == run.info.run_id or self._client.get_run(holder).info.lifecycle_stage == "active":
                return uri
        return None
