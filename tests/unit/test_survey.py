"""The survey of a journal: what it says without decoding it is what decoding it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from unified_tracker._journal import ATTEMPT_SHIFT, HEADER_BYTES, Journal, JournalReader, segments
from unified_tracker._survey import JournalSurvey
from unified_tracker.records import Entry, Finished, Loss, Started, Tags


def written(folder: Path, attempts: int, records: int) -> list[Entry]:
    """A journal of many small segments; its entries as the reader gives them."""
    for attempt in range(1, attempts + 1):
        journal = Journal(folder, segment_bytes=600)
        journal.append(Started(1, attempt, 1, None, None, {}))
        for step in range(records):
            journal.append_metrics({"loss": float(step)}, step)
        journal.close()
    return decoded(folder)


def decoded(folder: Path) -> list[Entry]:
    reader = JournalReader(folder)
    entries: list[Entry] = []
    while more := reader.read(final=True):
        entries += more
    return entries


def test_it_counts_what_stands_behind_any_record(tmp_path: Path) -> None:
    entries = written(tmp_path, attempts=3, records=80)
    assert len(segments(tmp_path)) > 10
    survey = JournalSurvey(tmp_path)
    assert survey.records_after(0) == len(entries)
    for index, entry in enumerate(entries):
        assert survey.records_after(entry.sequence) == len(entries) - index - 1
    assert survey.last == entries[-1]


def test_bytes_behind_a_record_are_near_the_truth_and_never_grow(tmp_path: Path) -> None:
    entries = written(tmp_path, attempts=2, records=200)
    survey = JournalSurvey(tmp_path)
    assert survey.bytes == sum(path.stat().st_size - HEADER_BYTES for path in segments(tmp_path))
    assert survey.bytes_after(0) == survey.bytes
    assert survey.bytes_after(entries[-1].sequence) == 0
    told = [survey.bytes_after(entry.sequence) for entry in entries]
    assert told == sorted(told, reverse=True)
    sizes = {path.name: path.stat().st_size for path in segments(tmp_path)}
    for entry, about in zip(entries, told, strict=True):
        later = sum(size - HEADER_BYTES for name, size in sizes.items() if name > entry.end.segment)
        assert abs(about - (later + sizes[entry.end.segment] - entry.end.offset)) < 100


def test_damage_at_the_end_hides_only_what_it_hit(tmp_path: Path) -> None:
    entries = written(tmp_path, attempts=1, records=5)
    path = segments(tmp_path)[-1]
    path.write_bytes(path.read_bytes()[:-3])
    assert JournalSurvey(tmp_path).last == entries[-2]


def test_a_last_record_larger_than_the_window_is_found(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(Tags(1, {"note": "x" * 1_000_000}))
    journal.close()
    survey = JournalSurvey(tmp_path)
    assert (survey.last, survey.records_after(0)) == (decoded(tmp_path)[-1], 1)


def test_an_empty_journal(tmp_path: Path) -> None:
    survey = JournalSurvey(tmp_path)
    assert (survey.last, survey.bytes, survey.records_after(0), survey.bytes_after(0), survey.lost()) == (
        None,
        0,
        0,
        0,
        0,
    )
    assert survey.status == "KILLED"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_status_is_that_of_the_last_attempt(tmp_path: Path, status: str) -> None:
    for last in (Finished(1, "FINISHED"), Finished(1, status)):
        journal = Journal(tmp_path)
        journal.append(Started(1, journal.attempt, 1, None, None, {}))
        journal.append(last)
        journal.close()
    assert JournalSurvey(tmp_path).status == status
    Journal(tmp_path).close()  # a process that died before its first record
    assert JournalSurvey(tmp_path).status == status
    journal = Journal(tmp_path)
    journal.append_metrics({"loss": 1.0}, 1)
    journal.close()
    assert JournalSurvey(tmp_path).status == "KILLED"


def test_losses_are_counted_and_their_bytes_in_a_string_are_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=200)
    journal.append(Tags(1, {"text": "\x94\xa4loss"}))
    for count in (3, 39):
        journal.append(Loss(1, count, "No space left on device"))
        for step in range(10):
            journal.append_metrics({"loss": 1.0}, step)
    journal.close()
    assert JournalSurvey(tmp_path).lost() == 42


def test_sequence_numbers_of_attempts_are_no_counts(tmp_path: Path) -> None:
    entries = written(tmp_path, attempts=2, records=3)
    assert entries[-1].sequence >> ATTEMPT_SHIFT == 2
    assert JournalSurvey(tmp_path).records_after(entries[3].sequence) == 4
