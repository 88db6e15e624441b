"""One tracker for detection training: MLflow, W&B or any plugin, for Detectron2, MMDetection and plain loops.

Example:
    import unified_tracker as ut

    with ut.start_run("mlflow", project="balloon") as run:
        run.log_metrics({"train/loss": 0.3}, step=1)
"""

from __future__ import annotations

from unified_tracker._errors import (
    BackendNotFoundError,
    BackendUnavailableError,
    ConfigurationError,
    PluginError,
    RecordError,
    RejectedError,
    TrackerError,
    TransientError,
)
from unified_tracker._run import Run
from unified_tracker._start import start_run
from unified_tracker._tracker import Address, Backend, Finding, RunInfo, Tracker

__all__ = [
    "Address",
    "Backend",
    "BackendNotFoundError",
    "BackendUnavailableError",
    "ConfigurationError",
    "Finding",
    "PluginError",
    "RecordError",
    "RejectedError",
    "Run",
    "RunInfo",
    "Tracker",
    "TrackerError",
    "TransientError",
    "start_run",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("unified-tracker")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
