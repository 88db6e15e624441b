"""For every test: nothing of this user's own state is read or written."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs that wait are remembered in a folder of this test session, also by the processes that tests start."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
