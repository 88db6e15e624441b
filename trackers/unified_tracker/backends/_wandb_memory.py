"""What the W&B tracker must know about its earlier tries: a small JSON file in the run directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import msgspec

FILE: Final = "tracker.json"
KEPT: Final = 64


class Memory(msgspec.Struct):
    """The state between two lives of the tracker. Written before the first row and after the last one.

    Attributes:
        first_step: W&B's step of our first row; above 0 only in a run that others had written to before.
        closed: (sequence, step): W&B holds everything up to this record, the next row has this step. Keyed by sequence,
            so that rows that are replayed get the steps that they had; the last few, since a lane may be one behind.
        folder: Offline: the folder that is being, or has been, written.
        complete: `folder` holds a whole run, or a whole attempt.
        kept: Offline folders of earlier attempts, which `wandb sync` had uploaded already.
        config, changed, names, tags, inputs: What the records up to `told` had said. A tracker that is not given all of
            the journal sends it again.
    """

    first_step: int | None = None
    closed: list[tuple[int, int]] = []
    folder: str | None = None
    complete: bool = False
    kept: list[str] = []
    config: dict[str, Any] = {}
    changed: list[list[Any]] = []
    names: dict[str, Any] = {}
    tags: dict[str, str] = {}
    inputs: list[dict[str, Any]] = []
    told: int = 0

    @classmethod
    def read(cls, folder: Path) -> Memory:
        """The stored state; a fresh one if there is none."""
        try:
            return msgspec.json.decode((folder / FILE).read_bytes(), type=cls)
        except (FileNotFoundError, msgspec.MsgspecError):
            return cls()

    def write(self, folder: Path) -> None:
        """Replace the stored state in one step."""
        temporary = folder / f".{FILE}.{os.getpid()}"
        temporary.write_bytes(msgspec.json.encode(self))
        os.replace(temporary, folder / FILE)

    @property
    def rebuilds(self) -> bool:
        """True if an offline run is to be written anew from the start of the journal.

        Not when an earlier folder has gone to W&B (`wandb sync` leaves a mark, also when it has only begun): the same
        rows again would be doubled. The rest then goes to a folder of its own, which `wandb sync` appends.
        """
        return not self.kept and not (self.complete and self.folder is not None and _synced(Path(self.folder)))

    def forget_folder(self) -> None:
        """Offline, before a new folder is begun: remove what it supersedes, half-written or older, and nothing else."""
        if self.folder is not None:
            if self.complete and not self.rebuilds:
                self.kept.append(self.folder)
            else:
                shutil.rmtree(self.folder, ignore_errors=True)
        self.folder, self.complete = None, False

    def close_at(self, sequence: int, step: int) -> None:
        """Everything up to this record is in W&B; the next row has this step."""
        self.closed = [*(pair for pair in self.closed if pair[0] < sequence), (sequence, step)][-KEPT:]

    def step_after(self, sequence: int) -> int:
        """W&B's step of the first row behind everything up to, not including, a record."""
        return max((step for last, step in self.closed if last < sequence), default=self.first_step or 0)


def _synced(folder: Path) -> bool:
    return any(folder.glob("*.wandb.sync*"))  # .syncstate: begun, .synced: done
