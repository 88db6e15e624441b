"""The conformance suite on W&B: genuine offline runs, read back from W&B's own files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Final, cast

import pytest

pytest.importorskip("wandb")

from tests.backends.wandb_feeding import clean_environment
from tests.backends.wandb_files import OfflineArtifact, offline_folders, read_run
from unified_tracker import Tracker
from unified_tracker._values import flatten
from unified_tracker.backends._wandb import create
from unified_tracker.records import Status
from unified_tracker.testing import Stored, StoredVersion, Subject, TrackerConformance, run_info

STATUS: Final = {0: "FINISHED", 1: "FAILED", 255: "KILLED"}


class WandbSubject:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tracker(self) -> Tracker:
        run_dir = self.folder / "run"
        run_dir.mkdir(exist_ok=True)
        return create(run_info("wandb"), run_dir, {"mode": "offline", "dir": str(self.folder)})

    def stored(self) -> Stored:
        (folder,) = offline_folders(self.folder)
        run = read_run(folder)
        names = run.config.get("unified_tracker/names", {})
        metrics: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for row in run.rows:
            for name, value in row.items():
                metrics[names.get(name, name)].append((row.get("trainer/step", 0), value))
        tags = {key.removeprefix("tags/"): value for key, value in run.config.items() if key.startswith("tags/")}
        params = {name: str(value) for name, value in flatten(run.config).items()}
        assert run.exit_code is not None
        status = cast(Status, STATUS[run.exit_code])
        return Stored(metrics, params, tags, _versions(run.artifacts), frozenset(run.saved), status)


def _versions(logged: list[OfflineArtifact]) -> dict[str, list[StoredVersion]]:
    """What the server makes of the artifacts: equal digests are one version, an alias moves to the latest taker."""
    digests: dict[str, list[str]] = defaultdict(list)
    content: dict[str, OfflineArtifact] = {}
    aliases: dict[tuple[str, str], str] = {}
    for artifact in logged:
        if artifact.digest not in digests[artifact.name]:
            digests[artifact.name].append(artifact.digest)
        content[artifact.digest] = artifact
        aliases.update({(artifact.name, alias): artifact.digest for alias in artifact.aliases})
    return {
        name: [
            StoredVersion(
                {path: hashlib.sha256(at.read_bytes()).hexdigest() for path, at in content[digest].files.items()},
                frozenset(alias for (owner, alias), to in aliases.items() if (owner, to) == (name, digest)),
                content[digest].metadata.get("metrics", {}),
            )
            for digest in known
        ]
        for name, known in digests.items()
    }


class TestWandbOffline(TrackerConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
        clean_environment(monkeypatch, tmp_path)
        return WandbSubject(tmp_path)
