"""Staged files are removed when every backend holds them, and not before."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from unified_tracker._journal import ATTEMPT_SHIFT, Journal, JournalReader
from unified_tracker._retention import Retention
from unified_tracker._rundir import LaneState, RunDirectory, write_json
from unified_tracker._staging import FOLDERS, Staging
from unified_tracker._tracker import RunInfo
from unified_tracker.records import Artifact, Entry, Media


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "run")
    found.create(RunInfo("abcdefgh", None, None, None, {}, 0, str(tmp_path), [], {"one": {}, "two": {}}))
    return found


@pytest.fixture
def entries(directory: RunDirectory, tmp_path: Path) -> list[Entry]:
    """A picture, a folder of two files, and a file of the user's that is delivered in place."""
    staging, journal = Staging(directory.path, 1), Journal(directory.journal)
    folder = tmp_path / "sharded"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(b"weights")
    journal.append(Media(1, "array", "picture", 1, staging.write("picture.npy", b"pixels")))
    journal.append(Artifact(2, "model", "model", staging.hold_tree(folder, "link")))
    in_place = msgspec.structs.replace(staging.write("x", b"x"), staged=str(folder / "a"))
    journal.append(Artifact(3, "data", "dataset", (in_place,)))
    journal.close()
    return JournalReader(directory.journal).read(final=True)


def holds(directory: RunDirectory, backend: str, sequence: int, **state: object) -> None:
    write_json(directory.lanes / f"{backend}.json", LaneState(backend, 1, held=sequence, **state))  # type: ignore[arg-type]


def staged(directory: RunDirectory) -> list[str]:
    found = (path for folder in FOLDERS for path in (directory.path / folder).glob("*"))
    return sorted(path.name.split("-")[2] for path in found)


def test_a_file_goes_when_the_last_backend_holds_it(directory: RunDirectory, entries: list[Entry]) -> None:
    retention = Retention(directory)
    for entry in entries:
        retention.delivered(entry)
    holds(directory, "one", entries[-1].sequence)
    retention.release()
    assert staged(directory) == ["a", "b", "picture.npy", "x"]  # of "two" nothing is known
    holds(directory, "two", entries[0].sequence)
    retention.release()
    assert staged(directory) == ["a", "b", "x"]
    holds(directory, "two", entries[-1].sequence)
    retention.release()
    assert staged(directory) == ["x"]  # nobody's
    assert (directory.path.parent / "sharded" / "a").read_bytes() == b"weights"


def test_a_backend_that_is_written_anew_keeps_everything(directory: RunDirectory, entries: list[Entry]) -> None:
    retention = Retention(directory)
    for entry in entries:
        retention.delivered(entry)
    holds(directory, "one", entries[-1].sequence, done=True)
    holds(directory, "two", entries[-1].sequence, done=True, rebuilds=True)
    retention.release()
    retention.sweep()
    assert staged(directory) == ["a", "b", "picture.npy", "x"]


def test_what_a_lane_that_died_had_left_goes_at_the_end(directory: RunDirectory, entries: list[Entry]) -> None:
    (directory.path / "files" / ".000-000001-a.1234").write_bytes(b"half a copy")
    later = Staging(directory.path, 2).write("next", b"of the attempt that has begun meanwhile")
    holds(directory, "one", entries[-1].sequence, done=True)
    holds(directory, "two", entries[-1].sequence)
    Retention(directory).sweep()
    assert len(staged(directory)) == 6
    holds(directory, "two", entries[-1].sequence, done=True)
    assert entries[-1].sequence >> ATTEMPT_SHIFT == 1
    Retention(directory).sweep()
    assert [path.name for path in (directory.path / "files").iterdir()] == [Path(later.staged).name]
