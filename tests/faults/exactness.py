"""EXACT: what the backend holds is what the calls returned for, row by row, no row missing and none twice."""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path

import mlflow

from unified_tracker._journal import JournalReader
from unified_tracker._naming import Renamer, path_like
from unified_tracker._rundir import RunDirectory
from unified_tracker.backends._mlflow_tracker import _nearest_step
from unified_tracker.records import Entry, Metrics

LARGEST = 1.7976931348623157e308
Row = tuple[str, int, int, bytes]


def journal(run_dir: Path) -> list[Entry]:
    """Every record of a run directory."""
    reader = JournalReader(run_dir / "journal")
    entries: list[Entry] = []
    while found := reader.read(final=True):
        entries += found
    return entries


def logged(run_dir: Path) -> Counter[Row]:
    """Every metric value in the journal, as MLflow should hold it."""
    names = Renamer(path_like, 250 - len("unified_tracker.name."))
    return Counter(
        row(names(name), step_of(entry.record), entry.record.ts, float(value))
        for entry in journal(run_dir)
        if isinstance(entry.record, Metrics)
        for name, value in entry.record.values.items()
    )


def step_of(record: Metrics) -> int:
    """Where a row stands: for a step that is no 64-bit integer at the nearest one."""
    return _nearest_step(record.bad_step) if record.step is None else record.step


def stored(uri: str, mlflow_id: str) -> Counter[Row]:
    """Every metric value that MLflow holds of a run."""
    client = mlflow.MlflowClient(uri)
    keys = client.get_run(mlflow_id).data.metrics
    return Counter(
        row(found.key, found.step, found.timestamp, found.value)
        for key in keys
        for found in client.get_metric_history(mlflow_id, key)
    )


def assert_exact(uri: str, run_dir: Path, missing: Counter[Row] | None = None) -> None:
    """Compare a run directory with the one run that MLflow has of it.

    Args:
        uri: The tracking server, or SQLite.
        run_dir: The run directory.
        missing: Rows of the journal that the backend is known to refuse.
    """
    expected = logged(run_dir)
    expected.subtract(missing or Counter())
    found = stored(uri, only_run(uri, run_dir).info.run_id)
    lacking, extra = expected - found, found - expected
    assert not lacking and not extra, (
        f"missing {len(lacking)}: {list(lacking)[:3]}; extra {len(extra)}: {list(extra)[:3]}"
    )


def only_run(uri: str, run_dir: Path) -> mlflow.entities.Run:
    """The run that carries our id; there must be exactly one."""
    info = RunDirectory(run_dir).info()
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(info.project)
    assert experiment is not None, f"no experiment {info.project}"
    found = client.search_runs([experiment.experiment_id], f"tags.`unified_tracker.run_id` = '{info.id}'")
    assert len(found) == 1, f"{len(found)} runs with id {info.id}"
    return found[0]


def row(name: str, step: int, ts: int, value: float) -> Row:
    """A row as MLflow's store keeps it: infinities become the largest number, and minus zero zero."""
    stored_value = min(max(value, -LARGEST), LARGEST) + 0.0
    return name, step, ts, b"NaN" if math.isnan(value) else struct.pack("<d", stored_value)
