"""The journal keeps whole records through cuts, flips, forks and full disks."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_tracker._journal import CRC, HEADER, HEADER_BYTES, HEADER_COPIES, MAGIC, Journal, JournalReader, segments
from unified_tracker.records import Artifact, Finished, Metrics, Params, Position, Record, StagedFile, Tags

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
numbers = st.floats() | st.integers(-(2**63), 2**63 - 1)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        Metrics, st.integers(0, 2**62), st.none() | st.integers(-(2**63), 2**63 - 1), st.dictionaries(text, numbers)
    ),
    st.builds(Params, st.integers(0, 2**62), st.dictionaries(text, text | numbers | st.lists(text))),
    st.builds(Tags, st.integers(0, 2**62), st.dictionaries(text, text)),
    st.builds(Finished, st.integers(0, 2**62), st.sampled_from(["FINISHED", "FAILED", "KILLED"]), st.none() | text),
    st.builds(
        Artifact,
        st.integers(0, 2**62),
        st.none() | text,
        text,
        st.lists(st.builds(StagedFile, text, text, st.integers(0, 2**40), st.integers(0, 2**62))).map(tuple),
    ),
)


def write(folder: Path, many: list[Record], **options: int) -> Journal:
    journal = Journal(folder, **options)
    for record in many:
        assert journal.append(record)
    journal.close()
    return journal


def read(folder: Path) -> list[Record]:
    return [entry.record for entry in read_entries(folder)]


def read_entries(folder: Path) -> list:
    reader, found = JournalReader(folder), []
    while entries := reader.read(final=True):
        found += entries
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(records, max_size=20), st.integers(200, 4000))
def test_what_was_written_is_read_in_order_over_any_number_of_segments(many: list[Record], size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), many, segment_bytes=size)
        found = read_entries(Path(name))
        assert repr([entry.record for entry in found]) == repr(many)  # repr: NaN is equal to itself there
        assert [entry.sequence for entry in found] == [(1 << 40) + i for i in range(1, len(many) + 1)]


def test_a_segment_cut_anywhere_gives_a_prefix_and_can_be_followed(tmp_path: Path) -> None:
    many = [Metrics(i, i, {"loss": i / 7, "nan": math.nan}) for i in range(6)]
    write(tmp_path / "whole", many)
    (path,) = segments(tmp_path / "whole")
    content = path.read_bytes()
    for cut in range(len(content)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / path.name).write_bytes(content[:cut])
        write(folder, [Tags(1, {"after": "the crash"})])
        found = read(folder)
        assert found[-1] == Tags(1, {"after": "the crash"})
        assert repr(found[:-1]) == repr(many[: len(found) - 1])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_loses_exactly_the_record_that_it_hits(data: st.DataObject) -> None:
    many = [Metrics(i, i, {"loss": i / 7}) for i in range(8)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, many)
        ends = [entry.end.offset for entry in read_entries(folder)]
        (path,) = segments(folder)
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        hit = next(index for index, end in enumerate(ends) if at < end) if at >= HEADER_BYTES else None
        assert read(folder) == [record for index, record in enumerate(many) if index != hit]


def test_a_journal_inside_a_logged_string_is_not_taken_for_records(tmp_path: Path) -> None:
    write(tmp_path / "inner", [Tags(1, {"forged": "yes"})])
    inner = segments(tmp_path / "inner")[0].read_bytes().decode("latin-1")
    write(tmp_path / "outer", [Tags(1, {"text": inner}), Tags(2, {"real": "yes"})])
    (path,) = segments(tmp_path / "outer")
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES] ^= 1  # the frame that holds the string is damaged: the reader searches inside it
    path.write_bytes(content)
    assert read(tmp_path / "outer") == [Tags(2, {"real": "yes"})]


def test_reading_follows_a_journal_that_grows(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    reader = JournalReader(tmp_path)
    assert reader.read() == []
    journal.append(Tags(1, {"a": "1"}))
    (first,) = reader.read()
    assert reader.read() == []
    journal.append(Tags(2, {"b": "2"}))
    assert [entry.record for entry in JournalReader(tmp_path, first.end).read()] == [Tags(2, {"b": "2"})]
    journal.close()


def test_an_incomplete_tail_is_waited_for_while_the_writer_lives(tmp_path: Path) -> None:
    write(tmp_path, [Tags(1, {"a": "1"}), Tags(2, {"b": "2"})])
    (path,) = segments(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    reader = JournalReader(tmp_path)
    assert len(reader.read()) == 1
    assert reader.read() == []
    path.write_bytes(content)
    assert [entry.record for entry in reader.read()] == [Tags(2, {"b": "2"})]
    assert reader.skipped_bytes == 0


def test_a_record_longer_than_a_read_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path, [Tags(1, {"long": "x" * 3_000_000}), Tags(2, {"b": "2"})])
    assert [len(str(record)) > 100 for record in read(tmp_path)] == [True, False]


def test_what_stands_behind_damage_longer_than_a_read_is_read(tmp_path: Path) -> None:
    write(tmp_path, [Tags(1, {"long": "x" * 3_000_000}), Tags(2, {"b": "2"})])
    (path,) = segments(tmp_path)
    content = bytearray(path.read_bytes())
    content[2_000_000] ^= 1
    path.write_bytes(content)
    assert read(tmp_path) == [Tags(2, {"b": "2"})]


def test_a_frame_that_a_file_system_repeats_is_one_record(tmp_path: Path) -> None:
    many: list[Record] = [Tags(i, {"k": "v"}) for i in range(4)]
    write(tmp_path, many)
    (path,) = segments(tmp_path)
    content = path.read_bytes()
    begin, end = (entry.end.offset for entry in read_entries(tmp_path)[:2])
    path.write_bytes(content + content[begin:end])
    reader = JournalReader(tmp_path)
    assert [entry.record for entry in reader.read(final=True)] == many
    assert reader.skipped_bytes == end - begin


def test_an_intact_frame_that_holds_no_text_is_counted_and_passed_over(tmp_path: Path) -> None:
    write(tmp_path, [Tags(1, {"a": "1"})])
    journal = Journal(tmp_path)
    journal._encode = lambda _: b"\x93\xa4tags\x01\x81\xa1\xff\xa1a"  # a key that is not UTF-8
    journal.append(Tags(2, {}))
    journal.close()
    write(tmp_path, [Tags(3, {"b": "2"})])
    reader, found = JournalReader(tmp_path), []
    while entries := reader.read(final=True):
        found += [entry.record for entry in entries]
    assert found == [Tags(1, {"a": "1"}), Tags(3, {"b": "2"})]
    assert reader.undecodable == 1


def test_a_new_segment_that_the_writer_takes_back_hides_nothing_of_the_one_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(Tags(1, {"a": "1"}))
    reader = JournalReader(tmp_path)
    assert len(reader.read()) == 1
    begun = tmp_path / "000001-000002.utj"
    begun.touch()  # the disk is full: no room for its header
    assert reader.read() == []
    begun.unlink()
    journal.append(Tags(2, {"b": "2"}))
    journal.close()
    assert [entry.record for entry in reader.read()] == [Tags(2, {"b": "2"})]


def test_two_calls_in_one_millisecond_and_step_have_two_times(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for _ in range(3000):
        journal.append_metrics({"loss": 1.0}, 5)
        journal.append_metrics({"loss": 1.0}, 6)
    journal.close()
    rows = [(record.ts, record.step) for record in read(tmp_path) if isinstance(record, Metrics)]
    assert len(set(rows)) == len(rows) == 6000


def test_a_clock_that_was_set_back_is_believed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    clock = [ms * 1_000_000 for ms in (5_000_000, 5_000_000, 5_000_001, 1_400_000, 1_400_000, 1_400_002)]
    with mock.patch("unified_tracker._journal.time.time_ns", side_effect=clock):
        for _ in range(6):
            journal.append_metrics({"loss": 1.0}, 5)
    journal.close()
    times = [record.ts for record in read(tmp_path)]
    assert times == [5_000_000, 5_000_001, 5_000_002, 1_400_000, 1_400_001, 1_400_002]


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(Tags(1, {"parent": "1"}))
    child = os.fork()
    if child == 0:
        os._exit(3 if journal.append(Tags(2, {"child": "1"})) else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    journal.append(Tags(3, {"parent": "2"}))
    journal.close()
    assert read(tmp_path) == [Tags(1, {"parent": "1"}), Tags(3, {"parent": "2"})]


WRITER = """
import resource, signal, sys
from pathlib import Path
from unified_tracker._journal import Journal
from unified_tracker.records import Tags
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
kept = sum(journal.append(Tags(i, {"k": "v" * 50})) for i in range(100))
lost = journal.lost
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert journal.append(Tags(1000, {"space": "again"}))
print(kept, lost, journal.first_error)
"""


def test_a_full_disk_loses_counted_records_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    kept, lost, *error = done.stdout.split()
    assert int(kept) + int(lost) == 100
    assert int(lost) > 50
    assert "bytes were written" in " ".join(error) or "File too large" in " ".join(error)
    found = read(tmp_path)
    assert len(found) == int(kept) + 1
    assert found[-1] == Tags(1000, {"space": "again"})


KILLED = """
import mmap, os, sys
from pathlib import Path
from unified_tracker._journal import Journal
shared = mmap.mmap(os.open(sys.argv[2], os.O_RDWR), 8)
journal = Journal(Path(sys.argv[1]), segment_bytes=20_000)
count = 0
while True:
    journal.append_metrics({f"m{i}": float(count) for i in range(count % 40)}, count)
    count += 1
    shared[:8] = count.to_bytes(8, "little")
"""


@pytest.mark.parametrize("attempt", range(8))
def test_what_a_call_returned_for_survives_sigkill(tmp_path: Path, attempt: int) -> None:
    counter = tmp_path / "counter"
    counter.write_bytes(bytes(8))
    journal = tmp_path / "journal"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(journal), str(counter)])
    while int.from_bytes(counter.read_bytes(), "little") < 300 * (attempt + 1):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    returned = int.from_bytes(counter.read_bytes(), "little")
    steps = [record.step for record in read(journal) if isinstance(record, Metrics)]
    assert steps == list(range(len(steps)))
    assert returned <= len(steps) <= returned + 1


def test_a_segment_of_another_format_is_kept_and_reported(tmp_path: Path) -> None:
    write(tmp_path, [Tags(1, {"a": "1"})])
    (path,) = segments(tmp_path)
    header = HEADER.pack(MAGIC, 99, 0, 1, 1)
    header += CRC.pack(zlib.crc32(header))
    path.write_bytes(header * HEADER_COPIES + path.read_bytes()[HEADER_BYTES:])
    reader = JournalReader(tmp_path)
    assert reader.read(final=True) == []
    assert reader.unreadable == [path.name]
    assert path.exists()
    assert Position("a", 1) < Position("b", 0)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_the_file_system_refuses_only_refused_records_are_missing(data: st.DataObject) -> None:
    """Full disks, input errors and short writes, at any write, at any new segment, at any cutting off of a torn end."""
    real_write, real_open, real_truncate = os.write, os.open, os.ftruncate
    begun = False

    def fate(*choices: str) -> str:
        return data.draw(st.sampled_from(["go", "go", *choices])) if begun else "go"

    def write_or_not(fd: int, content: bytes) -> int:
        match fate("full", "short"):
            case "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "short":
                return real_write(fd, content[: data.draw(st.integers(0, len(content) - 1))])
        return real_write(fd, content)

    def open_or_not(*arguments: Any) -> int:
        if fate("full") == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_open(*arguments)

    def truncate_or_not(fd: int, size: int) -> None:
        if fate("broken") == "broken":
            raise OSError(errno.EIO, "Input/output error")
        real_truncate(fd, size)

    many = [Tags(i, {"k": "v" * (i * 7 % 60)}) for i in range(30)]
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch("unified_tracker._journal.os.write", write_or_not),
        mock.patch("unified_tracker._journal.os.open", open_or_not),
        mock.patch("unified_tracker._journal.os.ftruncate", truncate_or_not),
    ):
        journal = Journal(Path(name), segment_bytes=300)
        begun = True
        results = [journal.append(record) for record in many]
        begun = False
        journal.close()
        assert read(Path(name)) == [record for record, written in zip(many, results, strict=True) if written]
        assert journal.lost == results.count(False)


INTERRUPTED = """
import itertools, signal, sys
from pathlib import Path
from unified_tracker._journal import Journal
journal = Journal(Path(sys.argv[1]), segment_bytes=5000)
loop, handled = itertools.count(), itertools.count()
def handler(*_):
    assert journal.append_metrics({"handler": float(next(handled))}, 1)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
while next(loop) < 20_000:
    assert journal.append_metrics({"loop": 1.0}, 1)
signal.setitimer(signal.ITIMER_REAL, 0)
journal.close()
print(20_000, next(handled))
"""


def test_a_signal_handler_may_log_in_the_middle_of_a_call(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    entries = read_entries(tmp_path)
    values = [next(iter(entry.record.values.items())) for entry in entries]
    loop, handled = map(int, done.stdout.split())
    assert [key for key, _ in values].count("loop") == loop
    assert sorted(value for key, value in values if key == "handler") == list(range(handled))
    assert handled > 50
    sequences = [entry.sequence for entry in entries]
    assert sequences == sorted(set(sequences))
    assert len({entry.record.ts for entry in entries}) == len(entries)
