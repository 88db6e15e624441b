"""The ledger of a lane: what the backend is known to hold, and what was set aside. SQLite, one writer, crash-safe."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from unified_tracker.records import Finished, Position

SCHEMA = """
create table if not exists state (key text primary key, value blob not null);
create table if not exists set_aside (sequence integer not null, detail text not null, reason text not null,
    primary key (sequence, detail));
"""


class Held(msgspec.Struct, frozen=True):
    """Everything up to here is in the backend, and what is known of the journal up to here.

    Attributes:
        sequence, segment, offset: The last record, and where the next one begins.
        records: Records so far.
        lost: Records of earlier attempts that were lost.
        gaps: Sequence numbers of this attempt that no record has: it was lost or damaged.
        losses: What `Loss` records of this attempt have reported. They report the same as the gaps do.
        finished: How the attempt ended, if it has said so.
    """

    sequence: int = 0
    segment: str = ""
    offset: int = 0
    records: int = 0
    lost: int = 0
    gaps: int = 0
    losses: int = 0
    finished: Finished | None = None

    @property
    def position(self) -> Position:
        """Where reading goes on."""
        return Position(self.segment, self.offset)

    @property
    def missing(self) -> int:
        """Records that were logged and are not in the journal, each counted once."""
        return self.lost + max(self.gaps, self.losses)


class Refused(NamedTuple):
    """A record, or one value of it, that the backend will never take."""

    sequence: int
    detail: str
    reason: str


class Ledger:
    """One file, `lanes/<backend>.db`. A commit is on the disk when the call returns."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("pragma journal_mode=truncate")
        self._db.execute("pragma synchronous=full")
        self._db.executescript(SCHEMA)

    def held(self) -> Held:
        """The acknowledged position."""
        return self.get("held", Held) or Held()

    def set_held(self, held: Held) -> None:
        """Move the acknowledged position."""
        self.put("held", held)

    def put(self, key: str, value: object) -> None:
        """Store a value under a key."""
        self._db.execute("insert or replace into state values (?, ?)", (key, msgspec.json.encode(value)))

    def get(self, key: str, kind: Any) -> Any:
        """The value of a key; None if there is none."""
        row = self._db.execute("select value from state where key = ?", (key,)).fetchone()
        return msgspec.json.decode(row[0], type=kind) if row else None

    def set_aside(self, sequence: int, detail: str, reason: str) -> None:
        """Remember that a record (or one value of it, named by `detail`) was refused for good."""
        self._db.execute("insert or replace into set_aside values (?, ?, ?)", (sequence, detail, reason[:2000]))

    def all_set_aside(self) -> list[tuple[int, str, str]]:
        """What was refused: sequence, detail, reason."""
        return self._db.execute("select sequence, detail, reason from set_aside order by sequence, detail").fetchall()

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def look_up(path: Path) -> tuple[Held, list[Refused]]:
    """What a ledger says, from outside its lane: nothing is written, a folder that cannot be written will do."""
    if not path.exists():
        return Held(), []
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as db:
        try:
            row = db.execute("select value from state where key = 'held'").fetchone()
            refused = db.execute("select sequence, detail, reason from set_aside order by sequence, detail").fetchall()
        except sqlite3.DatabaseError:  # a lane is just making it, or it is damaged
            return Held(), []
    return msgspec.json.decode(row[0], type=Held) if row else Held(), [Refused(*each) for each in refused]
