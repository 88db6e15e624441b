"""The previous version: what a backend, or for one that records offline the run directory, has of a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from unified_tracker._errors import TrackerError
from unified_tracker._reference import ArtifactReference
from unified_tracker._rundir import RunDirectory, write_bytes
from unified_tracker._store import ArtifactStore, open_store
from unified_tracker._versions import ArtifactVersion
from unified_tracker.datasets._card import ANNOTATIONS, CARD, DatasetCard

KEPT: Final = "dataset"  # folder in the run directory


@dataclass(frozen=True)
class Previous:
    """The latest version of a data set in one backend.

    Attributes:
        version: "v3"; "" where nobody counts.
        digest: Of the content; "" for one that somebody else has made.
        reference: To exactly this version; where nobody counts, to the latest one.
    """

    version: str
    digest: str
    reference: str
    _found: tuple[ArtifactStore, ArtifactVersion] | None
    _kept: Path

    def has(self, digest: str) -> bool:
        """Whether the backend has this content already, as this version or an earlier one."""
        if self._found is None or digest == self.digest:
            return digest == self.digest
        store, latest = self._found
        with contextlib.suppress(TrackerError, OSError):
            every = store.versions(type=latest.type, project=latest.project, name=latest.name)
            return any(each.metadata.get("digest") == digest for each in every)
        return False

    def folder(self, scratch: Path) -> Path | None:
        """A folder with its `annotations.json`, and `dataset.json` if it has one; None if it cannot be had.

        Args:
            scratch: An existing folder, for what must be downloaded.
        """
        if self._found is None:
            return self._kept
        store, version = self._found
        try:
            store.download(version, ANNOTATIONS, scratch / ANNOTATIONS)
        except (TrackerError, OSError):
            return None
        try:
            store.download(version, CARD, scratch / CARD)
        except (TrackerError, OSError):
            (scratch / CARD).unlink(missing_ok=True)
        return scratch


def previous(
    backend: str, options: Mapping[str, Any], project: str | None, name: str, run_dir: Path
) -> Previous | None:
    """The latest version of a data set in a backend; None if there is none, or it cannot be asked.

    Then the data set is logged, and the backend itself recognises what it has.

    Args:
        backend: Its name.
        options: Checked.
        project: As in `start_run`.
        name: Of the data set.
        run_dir: Of the data set's run. A backend that records offline cannot be asked: what was logged from there
            counts, as long as what it has recorded is there.
    """
    kept = run_dir / KEPT
    if options.get("mode") == "offline":
        return _kept(backend, name, run_dir)
    with contextlib.suppress(TrackerError, OSError, ImportError):
        store = open_store(backend, options, checked=True)
        version = store.find(ArtifactReference(backend, project, name, "latest"))
        digest = str(version.metadata.get("digest", ""))
        return Previous(version.version, digest, str(version.reference), (store, version), kept)
    return None


def keep(run_dir: Path, annotations: bytes, card: bytes) -> None:
    """Remember in the run directory what was logged last."""
    folder = run_dir / KEPT
    folder.mkdir(mode=0o700, exist_ok=True)
    write_bytes(folder / ANNOTATIONS, annotations)
    write_bytes(folder / CARD, card)


def _kept(backend: str, name: str, run_dir: Path) -> Previous | None:
    try:
        card = DatasetCard.decode((run_dir / KEPT / CARD).read_bytes())
        state = RunDirectory(run_dir).lane_state(backend)
    except (OSError, msgspec.MsgspecError):
        return None
    if state is None or state.address is None or not Path(state.address.url).exists():
        return None  # its offline run is gone, or was never written
    return Previous("", card.digest, str(ArtifactReference(backend, None, name)), None, run_dir / KEPT)
