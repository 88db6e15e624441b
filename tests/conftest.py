"""What all tests share: generated data, state and variables of their own, and no module under two names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
for _name in [name for name in os.environ if name.startswith(("UNIFIED_TRACKER", "MLFLOW_TRACKING", "WANDB_API"))]:
    del os.environ[_name]


@pytest.fixture(autouse=True, scope="session")
def no_module_is_loaded_twice() -> Iterator[None]:
    """A source root imported as a package would give every module a second copy."""
    yield
    assert not sorted(name for name in sys.modules if name.partition(".")[0] in {"trackers", "integrations"})


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train.json`, `train/`, `val.json`, `val/`: 16 and 6 generated images of 96 pixels."""
    from unified_tracker.demo.shapes import make_shapes

    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, split="train", images=16, size=96, seed=3)
    make_shapes(folder, split="val", images=6, size=96, seed=3)
    return folder


@pytest.fixture(autouse=True, scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs that wait, and what is fetched, are kept in folders of this session, also by processes that tests start."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    os.environ["UNIFIED_TRACKER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
