"""Progress: what a lane says about itself, in one small file, for people and for the training process."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from unified_tracker._rundir import LaneState, RunDirectory, write_json

NOTES: Final = 20

_log = logging.getLogger("unified_tracker.lane")


class Progress:
    """The `LaneState` of one lane, and its file. A file that cannot be written stops nothing."""

    def __init__(self, directory: RunDirectory, state: LaneState) -> None:
        self.state = state
        self._path = directory.lanes / f"{state.backend}.json"

    def publish(self, **changes: object) -> None:
        """Change the state and write it. No call to the backend goes on any more unless `call_until` is given."""
        changes.setdefault("call_until", 0.0)
        self.state = msgspec.structs.replace(self.state, **changes)
        try:
            write_json(self._path, self.state)
        except OSError:
            _log.exception("state of lane %s cannot be written", self.state.backend)

    def note(self, *sentences: str, **changes: object) -> None:
        """As `publish`, with sentences for the user; the first twenty are kept."""
        self.publish(notes=(*self.state.notes, *sentences)[:NOTES], **changes)
