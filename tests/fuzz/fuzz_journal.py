"""Fuzzes the journal's reader with atheris: whatever a disk may hold, reading it ends and invents nothing.

    nox -s fuzz -- 300                                      # seconds
    python tests/fuzz/fuzz_journal.py -max_total_time=300   # where atheris is installed; arguments are libFuzzer's
    python tests/fuzz/fuzz_journal.py crash-0123abcd        # one finding again

Three ways to use an input, chosen by its first byte:

* its bytes are segments, with or without a header that is right: no exception, an end, each byte skipped once;
* its bytes are the payloads of intact frames, as a newer version may have written them: as above, and no frame is lost
  uncounted;
* its bytes say how valid segments are damaged (bits flipped; pieces cut out, inserted, overwritten, repeated; frames
  repeated, exchanged, dropped) and how they are read (bytes a read, growing, resumed): each record that comes back was
  written, in the order of writing, once; and each whose bytes have survived does come back.

libFuzzer watches memory (256 MiB) and time (10 s an input).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["unified_tracker._journal"]):
    from unified_tracker import _journal
    from unified_tracker._journal import CRC, FRAME, HEADER, HEADER_BYTES, HEADER_COPIES, MAGIC, SYNC, VERSION

from unified_tracker.records import Entry, Metrics, Params, Position, Record, Started, Tags

LIMITS = ("-rss_limit_mb=256", "-timeout=10", "-max_len=4096", "-len_control=10")
BUDGETS = [1, 25, 100, 1000, 1 << 20]  # bytes a read: smaller than a frame, than a record, than a segment, all of it
NONCE, ATTEMPT = 0x5EED5EED, 1

MEMORY = Path("/dev/shm")
ROOT = Path(tempfile.mkdtemp(prefix="fuzz-journal-", dir=MEMORY if MEMORY.is_dir() else None))


class Original:
    """A journal as `Journal` wrote it: its segments, and the frame of each record."""

    def __init__(self, name: str, records: list[Record], segment_bytes: int) -> None:
        folder = ROOT / name
        journal = _journal.Journal(folder, segment_bytes=segment_bytes)
        for record in records:
            assert journal.append(record)
        journal.close()
        self.segments = {path.name: path.read_bytes() for path in _journal.segments(folder)}
        self.entries = read_all(folder, 1 << 20)
        assert [entry.record for entry in self.entries] == records
        self.frames: dict[int, tuple[str, bytes]] = {}
        before = Position()
        for entry in self.entries:
            begin = before.offset if before.segment == entry.end.segment else HEADER_BYTES
            frame = self.segments[entry.end.segment][begin : entry.end.offset]
            self.frames[entry.sequence] = entry.end.segment, frame
            before = entry.end


def read_all(folder: Path, budget: int, start: Position | None = None) -> list[Entry]:
    """Read to the end, and check what holds for whatever is there."""
    reader = _journal.JournalReader(folder, start or Position())
    found: list[Entry] = []
    size = sum(path.stat().st_size for path in folder.iterdir())
    position = reader.position
    while entries := reader.read(budget, final=True):
        assert position < entries[-1].end <= reader.position, "no progress"
        position = reader.position
        found += entries
    assert 0 <= reader.skipped_bytes <= size, f"{reader.skipped_bytes} of {size} bytes skipped"
    sequences = [entry.sequence for entry in found]
    assert sequences == sorted(set(sequences)), "order"
    return found


def header(nonce: int = NONCE, attempt: int = ATTEMPT) -> bytes:
    packed = HEADER.pack(MAGIC, VERSION, 0, nonce, attempt)
    return (packed + CRC.pack(zlib.crc32(packed))) * HEADER_COPIES


def frame(payload: bytes, count: int) -> bytes:
    head = FRAME.pack(SYNC, 1, 0, len(payload), ATTEMPT << _journal.ATTEMPT_SHIFT | count)
    return head + CRC.pack(zlib.crc32(payload, zlib.crc32(head, NONCE))) + payload


def fresh() -> Path:
    folder = ROOT / "journal"
    for path in folder.iterdir() if folder.exists() else ():
        path.unlink()
    folder.mkdir(exist_ok=True)
    return folder


def arbitrary_bytes(data: atheris.FuzzedDataProvider) -> None:
    folder = fresh()
    budget = data.PickValueInList(BUDGETS)
    for number in range(data.ConsumeIntInRange(1, 3)):
        before = header() if data.ConsumeBool() else b""
        content = data.ConsumeBytes(data.ConsumeIntInRange(0, 1500))
        (folder / f"000001-{number:06d}.utj").write_bytes(before + content)
    assert not [entry for entry in read_all(folder, budget) if not isinstance(entry, Entry)]


def arbitrary_payloads(data: atheris.FuzzedDataProvider) -> None:
    folder = fresh()
    budget = data.PickValueInList(BUDGETS)
    payloads: list[bytes] = []
    while data.remaining_bytes() and len(payloads) < 20:
        payloads.append(data.ConsumeBytes(data.ConsumeIntInRange(0, 200)))
    frames = b"".join(frame(payload, index + 1) for index, payload in enumerate(payloads))
    (folder / "000001-000001.utj").write_bytes(header() + frames)
    reader = _journal.JournalReader(folder)
    read = 0
    while entries := reader.read(budget, final=True):
        read += len(entries)
    assert read + reader.undecodable == len(payloads), "an intact frame was lost"
    assert reader.skipped_bytes == 0


def damaged(data: atheris.FuzzedDataProvider) -> None:
    original: Original = data.PickValueInList(ORIGINALS)
    budget = data.PickValueInList(BUDGETS)
    segments = {name: bytearray(content) for name, content in original.segments.items()}
    copied = False
    for _ in range(data.ConsumeIntInRange(1, 6)):
        name = data.PickValueInList(list(segments))
        copied |= damage(data, segments[name], [frame for at, frame in original.frames.values() if at == name])
    folder = fresh()
    grow = data.ConsumeBool()
    if grow:
        found = read_growing(data, folder, segments, budget)
    else:
        for name, content in segments.items():
            (folder / name).write_bytes(content)
        found = read_all(folder, budget)
    written = {entry.sequence: entry.record for entry in original.entries}
    for entry in found:
        assert written.get(entry.sequence) == entry.record, f"record {entry.sequence} was never written so"
    if copied:  # which of two places is the true one cannot be known
        return
    sequences = {entry.sequence for entry in found}
    for sequence, (name, whole) in original.frames.items():
        if survives(original.segments[name], bytes(segments[name]), whole):
            assert sequence in sequences, f"record {sequence} was intact and did not come back"
    if found:
        middle = data.ConsumeIntInRange(0, len(found) - 1)
        assert read_all(folder, budget, found[middle].end) == found[middle + 1 :], "resumed otherwise"


def survives(before: bytes, after: bytes, whole: bytes) -> bool:
    """True if a frame is still there, and a copy of the header where it belongs."""
    half = HEADER_BYTES // HEADER_COPIES
    starts = range(0, HEADER_BYTES, half)
    intact = [at for at in starts if after[at : at + half] == before[at : at + half]]
    return bool(intact) and after.find(whole, HEADER_BYTES) >= 0


def damage(data: atheris.FuzzedDataProvider, content: bytearray, frames: list[bytes]) -> bool:
    """Damage a segment in one way; True if something that was valid may stand in a second place."""
    kind = data.ConsumeIntInRange(0, 8)
    at = data.ConsumeIntInRange(0, max(len(content) - 1, 0))
    length = data.ConsumeIntInRange(0, 300)
    one, two = bytes(data.PickValueInList(frames)), bytes(data.PickValueInList(frames))
    if kind == 0 and content:
        content[at] ^= 1 << data.ConsumeIntInRange(0, 7)
    elif kind == 1:
        del content[at : at + length]
    elif kind == 2:
        del content[at:]
    elif kind == 3:
        content[at:at] = data.ConsumeBytes(length)
    elif kind == 4:
        fill = data.ConsumeBytes(length) or bytes(length)
        content[at : at + len(fill)] = fill[: len(content) - at]
    elif kind == 5:
        to = data.ConsumeIntInRange(0, len(content))
        content[to:to] = content[at : at + length]
        return True
    elif kind == 6 and one in content:  # a frame once more, somewhere between two frames or anywhere
        to = content.index(two) if two in content else at
        content[to:to] = one
        return True
    elif kind == 7 and one in content and two in content and one != two:  # two frames exchange their places
        first, second = sorted((content.index(one), content.index(two)))
        one, two = (one, two) if content.index(one) == first else (two, one)
        content[second : second + len(two)] = one
        content[first : first + len(one)] = two
        return True
    elif kind == 8 and one in content:
        begin = content.index(one)
        del content[begin : begin + len(one)]
    return False


def read_growing(
    data: atheris.FuzzedDataProvider, folder: Path, segments: dict[str, bytearray], budget: int
) -> list[Entry]:
    """Follow the segments while they are written, in pieces of any length; the writer ends, the rest is read."""
    reader = _journal.JournalReader(folder)
    found: list[Entry] = []
    for name, content in segments.items():
        at, pieces = 0, 0
        with (folder / name).open("wb", buffering=0) as file:
            while at < len(content):
                step = data.ConsumeIntInRange(1, 400) if pieces < 12 else len(content)
                file.write(content[at : at + step])
                at, pieces = at + step, pieces + 1
                found += reader.read(budget)
    while entries := reader.read(budget, final=True):
        found += entries
    sequences = [entry.sequence for entry in found]
    assert sequences == sorted(set(sequences)), "order"
    return found


def one_input(content: bytes) -> None:
    data = atheris.FuzzedDataProvider(content)
    (damaged, damaged, arbitrary_payloads, arbitrary_bytes)[data.ConsumeIntInRange(0, 3)](data)


def originals() -> list[Original]:
    inner = Original("inner", [Tags(1, {"forged": "yes"}), Tags(2, {"forged": "no"})], 8 << 20)
    text = next(iter(inner.segments.values())).decode("latin-1")
    metrics: list[Record] = [Metrics(i, i, {"loss": i / 7, "lr": 0.1}) for i in range(12)]
    mixed: list[Record] = [
        Started(1, 1, 1, "name", None, {"a": "b"}),
        Params(2, {"nested": {"lr": [1, 2.5, None]}}),
        Tags(3, {"text": text}),  # a journal in a journal
        *metrics[:4],
        Tags(4, {"long": "x" * 3000}),
        *metrics[4:],
    ]
    return [
        Original("small", metrics[:3], 8 << 20),
        Original("metrics", metrics, 8 << 20),
        Original("mixed", mixed, 8 << 20),
        Original("many-segments", mixed, 400),
    ]


ORIGINALS = originals()

if __name__ == "__main__":
    given = sys.argv[1:]
    defaults = [limit for limit in LIMITS if not any(one.startswith(limit.partition("=")[0]) for one in given)]
    child = os.fork()  # libFuzzer ends its process without a chance to clear up
    if child == 0:
        atheris.Setup([sys.argv[0], *defaults, *given], one_input)
        atheris.Fuzz()
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        shutil.rmtree(ROOT, ignore_errors=True)
    sys.exit(code)
