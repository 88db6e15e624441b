"""What the W&B tests share: entries as the lane passes them on, and an environment without a trace of W&B."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any, Final

import pytest

from unified_tracker._tracker import RunInfo
from unified_tracker.records import Artifact, Entry, Media, Metrics, Position, Record, StagedFile

TS: Final = 1_700_000_000_000
KEY: Final = "k" * 40


def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No key, no setting and no folder of this machine; what a tracker sets is undone. Returns an empty home folder."""
    ours = ["WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_BASE_URL", "WANDB_DIR", "NETRC"]
    for name in [*(name for name in os.environ if name.startswith("WANDB_")), *ours]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return home


class Feeder:
    """Makes entries as the lane would pass them on."""

    def __init__(self, run_dir: Path, attempt: int = 1) -> None:
        self._numbers = itertools.count((attempt << 40) + 1)
        self._run_dir = run_dir

    def entry(self, record: Record) -> Entry:
        return Entry(next(self._numbers), record, Position())

    def metrics(self, step: int | None, **values: float) -> Entry:
        return self.entry(Metrics(TS, step, {name.replace("__", "/"): value for name, value in values.items()}))

    def media(self, form: Any, name: str, step: int, content: bytes, file: str, caption: str | None = None) -> Any:
        path = self._run_dir / "files" / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        record = Media(TS, form, name, step, StagedFile(file, f"files/{file}", len(content), 0), caption)
        return self.entry(record), path

    def artifact(self, name: str | None, files: dict[str, bytes], kind: str = "model", **more: Any) -> Any:
        staged = {}
        for path, content in files.items():
            number = next(self._numbers)
            staged[path] = self._run_dir / "files" / f"{number}-{Path(path).name}"
            staged[path].parent.mkdir(exist_ok=True)
            staged[path].write_bytes(content)
        return self.entry(Artifact(TS, name, kind, (), **more)), staged


def info(tmp_path: Path, **changes: Any) -> RunInfo:
    given = {"project": "balloon", "name": "#0 first", "description": "why", "tags": {"stage": "dev"}, **changes}
    return RunInfo("run0abcd", created_ms=TS, cwd=str(tmp_path / "work"), command=[], backends={}, **given)
