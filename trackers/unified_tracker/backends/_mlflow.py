"""MLflow as a backend: its options. Light, imports no MLflow."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from unified_tracker._errors import ConfigurationError
from unified_tracker._settings import refuse_unknown
from unified_tracker._store import ArtifactStore
from unified_tracker._tracker import Backend, Finding, RunInfo, Tracker
from unified_tracker.hookspecs import hookimpl

OPTIONS: Final = frozenset({"tracking_uri", "run_id", "artifact_location", "registered_model_name"})

NAME_LIMIT: Final = 256  # of a registered model


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the options.

    * `tracking_uri`: default `$MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db` in the working folder.
    * `run_id`: an MLflow run to join; default the run that is active in this process, else `$MLFLOW_RUN_ID`.
    * `artifact_location`: where a new experiment keeps its artifacts; default MLflow's own choice.
    * `registered_model_name`: register the best checkpoints and the last one under this name; default none.

    Raises:
        ConfigurationError: An option is unknown, or the name is none that MLflow registers.
    """
    refuse_unknown(options, OPTIONS, where="options of 'mlflow'")
    registered = _registered_name(options.get("registered_model_name"))
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
        "registered_model_name": registered,
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


def _registered_name(given: Any) -> str | None:
    if given is None or given == "":
        return None
    if not isinstance(given, str) or not given.strip() or len(given) > NAME_LIMIT or set(given) & set("/:"):
        rule = f"a text of at most {NAME_LIMIT} characters without '/' and ':'"
        raise ConfigurationError(f"registered_model_name must be {rule}, not {given!r}")
    return given


def _absolute(uri: str) -> str:
    """A relative path as an absolute one: the uploader and later commands run elsewhere."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/") and ":memory:" not in uri:
        return prefix + str(Path.cwd() / uri.removeprefix(prefix))
    folder = uri.removeprefix("file:") if not uri.startswith("file:/") else uri
    if ":" not in folder and folder != "databricks":
        return Path(folder).absolute().as_uri()
    return uri
