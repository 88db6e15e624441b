"""What a lane that records offline notes about its run, so that others find it by name: see `_wandb_index`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from unified_tracker._digest import file_digest
from unified_tracker._tracker import RunInfo
from unified_tracker.backends import _wandb_values as values
from unified_tracker.backends._wandb_index import Collection, Index, KeptFile, KeptRun, Logged, here
from unified_tracker.records import Artifact, Entry, Input


class Recorded:
    """One run. Nothing here may stop delivery: what cannot be noted is told once, in `notes`."""

    def __init__(self, info: RunInfo, run_dir: Path, *, run: str, entity: str, project: str) -> None:
        self._run = KeptRun(
            run, info.id, entity, project, info.name or "", info.created_ms, str(run_dir.resolve()), here()
        )
        self.notes: list[str] = []
        self._noted = False

    def version(self, entry: Entry, files: Mapping[str, Path], digest: str) -> None:
        """Note a version, once however often its record comes.

        Args:
            entry: With an `Artifact` that has a name.
            files: Name in the artifact to where the bytes are; they stay there as long as the run is offline.
            digest: W&B's, of the content.
        """
        record = entry.record
        assert isinstance(record, Artifact) and record.name is not None  # noqa: S101 -- the caller has looked
        run = self._run
        name, kind = values.artifact_names(record.name), values.artifact_types(record.type)
        collection = Collection(run.entity, run.project, name, kind)

        def note(index: Index) -> None:
            before = index.known(collection, (run.run_id, entry.sequence))
            known = before.files if before is not None else {}
            logged = Logged(
                run.run,
                run.run_id,
                run.run_dir,
                run.host,
                entry.sequence,
                record.ts,
                {path: _kept(source, known.get(path)) for path, source in files.items()},
                tuple(values.aliases(record.aliases)),
                values.json_like(record.metadata),
                values.finite(record.metrics),
                record.step,
                record.epoch,
            )
            index.add(collection, logged, digest)
            if not self._noted:
                index.put_run(self._run)

        self._note(note, f"artifact {record.name!r}")

    def inputs(self, inputs: Iterable[Input]) -> None:
        """Note what the run was made from: all of it, as known now."""
        self._run = msgspec.structs.replace(self._run, inputs=tuple(inputs))
        self._note(lambda index: index.put_run(self._run), "what the run was made from")

    def _note(self, how: Callable[[Index], Any], what: str) -> None:
        try:
            how(Index())
            self._noted = True
        except (OSError, RuntimeError, KeyError) as error:
            self._tell(f"{what} is recorded, but is not found by name on this machine: {error}")

    def _tell(self, sentence: str) -> None:
        if not self.notes:  # one is enough: the others fail for the same reason
            self.notes.append(sentence)


def _kept(source: Path, before: KeptFile | None) -> KeptFile:
    """A file with its hash; one that was hashed in an earlier try, and is the same, is not read again."""
    path, now = os.path.abspath(source), source.stat()
    if before is not None and (before.path, before.size, before.mtime_ns) == (path, now.st_size, now.st_mtime_ns):
        return before
    return KeptFile(path, now.st_size, now.st_mtime_ns, file_digest(source))
