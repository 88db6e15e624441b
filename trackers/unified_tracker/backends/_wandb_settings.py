"""How wandb is set up in the lane's process: before it is imported, and when a run is opened."""

from __future__ import annotations

import logging
import os
from typing import Any, Final, Literal

# Before wandb is imported: what it says about itself to its makers, and a service process of the training's own run,
# which dies with the training, are not for this process.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ.pop("WANDB_SERVICE", None)

import wandb
import wandb.util

INIT_S: Final = 30.0
FINISH_S: Final = 300.0
SETTINGS: Final[dict[str, Any]] = {
    "console": "off",
    "silent": True,
    "init_timeout": INIT_S,
    "finish_timeout": FINISH_S,
    "finish_timeout_raises": True,  # a finish that gives up silently would be taken for a delivery
    # This process is not the training: its machine load, code, git state and packages are none of the run's.
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "sagemaker_disable": True,
    "label_disable": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}

logging.getLogger("wandb").propagate = False  # it writes a log of its own, beside the run

# wandb asks for every picture and table whether it is a data frame, importing pandas for it. We pass none, and a pandas
# that does not fit NumPy (NumPy 1 is what Detectron2 wants) must not cost a picture.
if hasattr(wandb.util, "pd_available"):
    wandb.util.pd_available = False


def settings(*, mode: Literal["online", "offline"], root_dir: str) -> wandb.Settings:
    """Our settings, as far as this version of wandb knows them."""
    known = {key: value for key, value in SETTINGS.items() if key in wandb.Settings.model_fields}
    return wandb.Settings(mode=mode, root_dir=root_dir, **known)
