"""Recording without delivering, for tests of what the training process does."""

from __future__ import annotations

from pathlib import Path

import pytest

from unified_tracker import _start


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which runs are recorded but not delivered: no uploader is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_start.UploaderProcess, "start", lambda self: None)
    monkeypatch.setattr("unified_tracker._plugins.require", lambda backend: None)  # no client is needed to record
    monkeypatch.setattr("unified_tracker._watch.DeliveryWatch.wait", lambda self, last, timeout_s: False)
    return tmp_path
