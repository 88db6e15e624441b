"""MLflow as a backend: its options. Light, imports no MLflow."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from unified_tracker._settings import refuse_unknown
from unified_tracker._store import ArtifactStore
from unified_tracker._tracker import Backend, Finding, RunInfo, Tracker
from unified_tracker.hookspecs import hookimpl

OPTIONS: Final = frozenset({"tracking_uri", "run_id", "artifact_location"})


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the options.

    * `tracking_uri`: default `$MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db` in the working folder.
    * `run_id`: an MLflow run to join; default the run that is active in this process, else `$MLFLOW_RUN_ID`.
    * `artifact_location`: where a new experiment keeps its artifacts; default MLflow's own choice.
    """
    refuse_unknown(options, OPTIONS, where="options of 'mlflow'")
    uri = options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    run_id, owned = options.get("run_id") or os.environ.get("MLFLOW_RUN_ID"), True
    client = sys.modules.get("mlflow")  # only if the user has imported it
    active = client.active_run() if client is not None else None
    if client is not None and active is not None and not options.get("run_id"):
        run_id, owned = active.info.run_id, False
        uri = options.get("tracking_uri") or client.get_tracking_uri()
    return {
        "tracking_uri": _absolute(str(uri)),
        "artifact_location": options.get("artifact_location"),
        "run_id": run_id,
        "owned": owned,
    }


def create(run: RunInfo, run_dir: Path, options: Mapping[str, Any]) -> Tracker:
    """Make the tracker. Imports MLflow."""
    from unified_tracker.backends._mlflow_tracker import MlflowTracker

    return MlflowTracker(run_dir, options)


def diagnose(options: Mapping[str, Any]) -> list[Finding]:
    """Look at the server or file that the options name."""
    from unified_tracker.backends import _mlflow_check  # HTTP and SSL: not for a training

    return _mlflow_check.diagnose(options)


def store(options: Mapping[str, Any]) -> ArtifactStore:
    """What the server of the options holds."""
    from unified_tracker.backends._mlflow_store import MlflowStore  # imports MLflow

    return MlflowStore(options)


@hookimpl
def tracker_backend() -> Backend:
    """Offer MLflow."""
    return Backend(
        name="mlflow",
        check=check,
        create=create,
        requires=("mlflow",),
        install='pip install "unified-tracker[mlflow]"',
        diagnose=diagnose,
        store=store,
    )


def _absolute(uri: str) -> str:
    """A relative path as an absolute one: the uploader and later commands run elsewhere."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/") and ":memory:" not in uri:
        return prefix + str(Path.cwd() / uri.removeprefix(prefix))
    folder = uri.removeprefix("file:") if not uri.startswith("file:/") else uri
    if ":" not in folder and folder != "databricks":
        return Path(folder).absolute().as_uri()
    return uri
