"""Reading a run back from its backend: `python -m unified_tracker.demo._read_back RUN_DIR BACKEND` prints JSON.

A process of its own, since it imports the backend's client, which the process of the terminal does not.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from unified_tracker._journal import JournalReader
from unified_tracker._rundir import LaneState, RunDirectory
from unified_tracker._values import flatten
from unified_tracker.demo._wandb_files import items, numbers, offline_records
from unified_tracker.records import Artifact, Finished, Media, Metrics, Params


class Checkpoint(msgspec.Struct, frozen=True):
    """One version of the model, as the backend has it."""

    version: str
    step: int
    aliases: list[str]


class Recorded(msgspec.Struct, frozen=True):
    """What a backend has of a run.

    Attributes:
        params: Number of parameters.
        metrics: Metric name to its number of values.
        last: Metric name to its last value; None for NaN and infinities, which JSON does not have.
        checkpoints: Model versions, oldest first.
        files: Plain files of the run, without the checkpoints.
        status: The backend's own word; "" where it keeps none.
    """

    params: int
    metrics: dict[str, int]
    last: dict[str, float | None]
    checkpoints: list[Checkpoint]
    files: list[str]
    status: str = ""


def read_mlflow(directory: RunDirectory, state: LaneState) -> Recorded:
    """By `MlflowClient`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    assert state.address is not None  # noqa: S101 -- `main` has checked
    info = directory.info()
    client = mlflow.MlflowClient(info.backends["mlflow"]["tracking_uri"])
    run = client.get_run(state.address.id)
    models = [
        model
        for model in client.search_logged_models([run.info.experiment_id], f"name = 'run-{info.id}-model'")
        if model.source_run_id == run.info.run_id
    ]
    alias = "unified_tracker.alias."
    checkpoints = [
        Checkpoint(
            str(model.tags.get("unified_tracker.version", "")),
            int(model.params.get("step", 0)),
            sorted(tag.removeprefix(alias) for tag in model.tags if tag.startswith(alias)),
        )
        for model in models
    ]
    return Recorded(
        params=len(run.data.params),
        metrics={name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics},
        last=dict(run.data.metrics),
        checkpoints=sorted(checkpoints, key=lambda checkpoint: checkpoint.step),
        files=_files(client, run.info.run_id, None),
        status=run.info.status,
    )


def read_wandb(directory: RunDirectory, state: LaneState) -> Recorded:
    """By the offline run's own file; a run that is online is looked at in the browser."""
    assert state.address is not None  # noqa: S101 -- `main` has checked
    config: dict[str, Any] = {}
    metrics: Counter[str] = Counter()
    last: dict[str, float | None] = {}
    checkpoints: list[Checkpoint] = []
    files: list[str] = []
    for record in offline_records(next(Path(state.address.url).glob("*.wandb"))):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config.update(items(record.run.config.update))
        elif kind == "config":
            config.update(items(record.config.update))
        elif kind == "history":
            row = numbers(record.history.item)
            metrics.update(row.keys())
            last.update(row)
        elif kind == "artifact" and record.artifact.type == "model":
            metadata = json.loads(record.artifact.metadata or "{}")
            _add_version(checkpoints, metadata.get("step"), record.artifact.aliases)
        elif kind == "artifact":
            files.append(record.artifact.name)
        elif kind == "files":
            files += [item.path for item in record.files.files]
    params = [name for name in flatten(config) if not name.startswith(("_wandb", "tags/", "unified_tracker/"))]
    status = str(config.get("unified_tracker/status", ""))
    return Recorded(len(params), dict(metrics), last, checkpoints, files, status)


def read_journal(directory: RunDirectory) -> Recorded:
    """What the training logged: the measure for what the backends have."""
    params: dict[str, Any] = {}
    metrics: Counter[str] = Counter()
    last: dict[str, float | None] = {}
    checkpoints: list[Checkpoint] = []
    files: list[str] = []
    status = ""
    reader = JournalReader(directory.journal)
    while entries := reader.read(final=True):
        for record in (entry.record for entry in entries):
            if isinstance(record, Params):
                params.update(flatten(record.values))
            elif isinstance(record, Metrics):
                metrics.update(record.values.keys())
                last.update(record.values)
            elif isinstance(record, Artifact) and record.type == "model":
                _add_version(checkpoints, record.step, record.aliases)
            elif isinstance(record, Artifact):
                files += [file.path for file in record.files]
            elif isinstance(record, Media):
                files.append(record.name)
            elif isinstance(record, Finished):
                status = record.status
    return Recorded(len(params), dict(metrics), last, checkpoints, files, status)


def _add_version(checkpoints: list[Checkpoint], step: int | None, aliases: Iterable[str]) -> None:
    """A new version takes its aliases away from the older ones."""
    moved = {"latest", *aliases}
    for checkpoint in checkpoints:
        checkpoint.aliases[:] = [alias for alias in checkpoint.aliases if alias not in moved]
    checkpoints.append(Checkpoint(f"v{len(checkpoints)}", step or 0, sorted(moved)))


def _files(client: Any, run_id: str, folder: str | None) -> list[str]:
    found: list[str] = []
    for item in client.list_artifacts(run_id, folder):
        found += _files(client, run_id, item.path) if item.is_dir else [item.path]
    return found


READERS: Final[dict[str, Callable[[RunDirectory, LaneState], Recorded]]] = {
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}


def main(arguments: Sequence[str]) -> None:
    """Print what a backend has of a run; nothing where this module cannot read the backend."""
    directory, backend = RunDirectory(Path(arguments[0])), arguments[1]
    state = directory.lane_state(backend)
    reader = READERS.get(backend)
    if reader is not None and state is not None and state.address is not None:
        sys.stdout.buffer.write(msgspec.json.encode(reader(directory, state)))


if __name__ == "__main__":
    main(sys.argv[1:])
