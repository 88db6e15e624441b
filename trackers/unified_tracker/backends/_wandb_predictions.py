"""Predictions in W&B: the sample as a data set, each evaluation as a table over its pictures, worst images first.

==============================  ==========================================================================
`<dataset>-val`                 pictures, `annotations.json`, table `val_data`; once, by content
`run-<run id>-predictions`      table `eval_data`, tables of classes, the page, COCO results, Parquet
`<split>/predictions`           the tables in the run's workspace, and figures beside them
`val`, `run_<id>_pred`          what MMDetection 2.x called them, for `names="mmdet2"`: one reference each
==============================  ==========================================================================

The pictures, and what is true, stand in an evaluation by reference. Offline they are entries like others: files that
are on the disk once, and of which `wandb sync` sends what W&B does not have. References it would resolve while it sends
the other artifact; where that is not yet known to the server it drops the one that refers to it, and reports success
(wandb 0.31, in one of eight tries). For the same reason there are no old names offline.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import wandb

from unified_tracker.backends._wandb_evaluation import EVALUATION, Prepared, prepare
from unified_tracker.backends._wandb_sample import TABLE, Sample, draft_sample, sample_of
from unified_tracker.backends._wandb_store import Store
from unified_tracker.backends._wandb_tables import SUFFIX, Table
from unified_tracker.backends._wandb_versions import Draft, Version, Versions

if TYPE_CHECKING:
    from unified_tracker.predictions._report import PredictionReport


class PredictionLog:
    """What this process logs of a run's evaluations."""

    def __init__(self, folder: Path, versions: Versions, run: Any, *, offline: bool, old_names: bool) -> None:
        """Remember where.

        Args:
            folder: The tracker's own, in the run directory.
            versions: Of the run.
            run: W&B's.
            offline: Files stay for `wandb sync`.
            old_names: Also under the names of MMDetection 2.x.
        """
        self._folder, self._versions, self._run = folder, versions, run
        self._offline, self._old_names = offline, old_names
        self._store = Store(folder)
        self._samples: dict[str, Sample] = {}
        self._sample_draft: tuple[str, Draft] | None = None
        self._prepared: Prepared | None = None
        self._logged: tuple[Prepared, Version] | None = None

    def log(self, sequence: int, report: PredictionReport) -> Callable[[str, int], dict[str, Any]]:
        """Store the sample and an evaluation; wait for the server to commit them.

        Returns:
            Makes the row of the run's history, from the name that it begins with and W&B's step.

        Raises:
            TransientError: The server has not taken everything yet; what it has taken is not sent again.
        """
        if self._logged is None or self._logged[0].sequence != sequence:
            self._logged = self._log(sequence, report)
        prepared, version = self._logged
        return lambda name, step: self._row(name, step, report, prepared, version)

    def _log(self, sequence: int, report: PredictionReport) -> tuple[Prepared, Version]:
        deadline = self._versions.deadline()
        sample = self._logged_sample(sequence, report, deadline)
        if self._prepared is None or self._prepared.sequence != sequence:
            self._prepared = prepare(sequence, report, sample, self._store)
        prepared = self._prepared
        try:
            version = self._versions.log(sequence, prepared.draft, deadline)
        except wandb.Error:
            self._forget_sample(sample)  # perhaps somebody has deleted what the references point to
            raise
        if self._old_names and not self._offline:
            self._log_old_names(sequence, sample, version, prepared.draft, deadline)
        if not self._offline:
            self._store.release(prepared.draft.files.values())
        return prepared, version

    # ---- the sample --------------------------------------------------------------------------------------------

    def _logged_sample(self, sequence: int, report: PredictionReport, deadline: float) -> Sample:
        digest = report.sample_digest
        sample = self._samples.get(digest) or self._remembered(digest)
        if sample is None:
            if self._sample_draft is None or self._sample_draft[0] != digest:
                self._sample_draft = digest, draft_sample(report, self._store)
            draft = self._sample_draft[1]
            version = self._versions.log(sequence, draft, deadline)
            table = draft.files[TABLE + SUFFIX]
            sample = sample_of(digest, version, table.read_bytes(), draft.files if self._offline else {})
            if not self._offline:
                place = str(table.relative_to(self._folder))
                memory = SampleMemory(place, version.name, version.url, dict(version.digests))
                self._memory(digest).write_bytes(msgspec.json.encode(memory))
                self._store.release(path for path in draft.files.values() if path != table)
            self._sample_draft = None
        self._samples[digest] = sample
        return sample

    def _remembered(self, digest: str) -> Sample | None:
        """The sample, if an earlier process has seen the server commit it: the pictures may be gone by now."""
        if self._offline:
            return None
        try:
            memory = msgspec.json.decode(self._memory(digest).read_bytes(), type=SampleMemory)
            table = (self._folder / memory.table).read_bytes()
        except (OSError, msgspec.MsgspecError):
            return None
        version = Version(memory.name, memory.url, "", memory.digests, {}, frozenset())
        return sample_of(digest, version, table, {})

    def _forget_sample(self, sample: Sample) -> None:
        self._memory(sample.digest).unlink(missing_ok=True)
        self._versions.forget(sample.version.name)
        self._samples.pop(sample.digest, None)
        self._prepared = None

    def _memory(self, digest: str) -> Path:
        return self._folder / f"sample-{digest}.json"

    # ---- names and the workspace -------------------------------------------------------------------------------

    def _log_old_names(self, sequence: int, sample: Sample, version: Version, draft: Draft, deadline: float) -> None:
        """The names that scripts for MMDetection 2.x ask for: W&B follows a reference to a table, pictures and all."""
        table = TABLE + SUFFIX
        own = Draft("val", "dataset", {}, {table: sample.version.reference(table)})
        self._versions.log(sequence, own, deadline)
        table = EVALUATION + SUFFIX
        own = draft.as_references(f"run_{self._run.id}_pred", version, "evaluation", [table])
        self._versions.log(sequence, own, deadline)

    def _row(
        self, name: str, step: int, report: PredictionReport, prepared: Prepared, version: Version
    ) -> dict[str, Any]:
        row: dict[str, Any] = {name: self._table_value(name, step, prepared.tables[EVALUATION], version, EVALUATION)}
        for each, table in prepared.tables.items():
            if each != EVALUATION:
                own = f"{name}/{each}"
                row[own] = self._table_value(own, step, table, version, each)
        for each, path in report.figures.items():
            row[f"{name}/{each}"] = wandb.Image(str(path))
        return row

    def _table_value(self, name: str, step: int, table: Table, version: Version, place: str) -> dict[str, Any]:
        """A table in the run's history, as W&B's client has one that is in an artifact: by reference.

        What the client does beyond that is a third artifact with nothing but the same reference.
        """
        limit = max(len(table.rows), wandb.Table.MAX_ROWS)  # wandb cuts longer tables off
        wandb.Table.MAX_ROWS, wandb.Table.MAX_ARTIFACT_ROWS = limit, max(limit, wandb.Table.MAX_ARTIFACT_ROWS)
        plain = wandb.Table(columns=list(table.columns), data=table.plain(), allow_mixed_types=True)
        plain.bind_to_run(self._run, name, step)
        value: dict[str, Any] = plain.to_json(self._run)
        return value | {"artifact_path": version.reference(place + SUFFIX).url}


class SampleMemory(msgspec.Struct):
    """A sample that the server holds: its table here, in the tracker's folder, its files there."""

    table: str
    name: str
    url: str
    digests: dict[str, str]
