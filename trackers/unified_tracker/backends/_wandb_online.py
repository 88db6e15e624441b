"""From an offline run to an online one: delivered from the journal, and not a second time by `wandb sync`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from unified_tracker._errors import ConfigurationError
from unified_tracker.backends._wandb_index import Index
from unified_tracker.backends._wandb_memory import Memory

OWN: Final = "wandb"  # the tracker's folder in the run directory
BEGUN: Final = "*.wandb.sync*"  # `wandb sync` leaves .syncstate when it has begun, .synced when it is done


@contextmanager
def going_online(run_dir: Path, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options for delivery online; afterwards what was written offline is marked as synced.

    Raises:
        ConfigurationError: `wandb sync` has uploaded it already, or has begun to.
    """
    memory = Memory.read(run_dir / OWN)
    folders = [Path(folder) for folder in (*memory.kept, memory.folder) if folder]
    for folder in folders:
        if any(folder.glob(BEGUN)):
            raise ConfigurationError(
                f"`wandb sync` has uploaded {folder} already, or has begun to: delivered once more, its rows would "
                f"stand twice. What is left of it: wandb sync {folder}"
            )
    if not folders:  # nothing was written yet
        yield {**options, "mode": "online"}
        return
    # What the tracker remembers is about the offline run. Should this end here, the folder is written anew.
    Memory(folder=memory.folder).write(run_dir / OWN)
    yield {**options, "mode": "online"}
    for folder in folders:
        for file in folder.glob("*.wandb"):
            file.with_name(f"{file.name}.synced").touch()
    with contextlib.suppress(OSError, RuntimeError, KeyError):  # without a home nothing was noted
        Index().went_online(run_dir)
    # Should the run go on offline one day, only what comes then belongs into a new folder.
    Memory(kept=[str(folder) for folder in folders]).write(run_dir / OWN)
