"""Reading W&B's offline files, for the demo's summary: the records of a `.wandb` file, decoded by W&B's own protobuf.

The file is a 7-byte header and blocks of 32 KiB (counted from its start) of chunks: crc32 u32, length u16, kind u8
(1 whole record, 2 its first part, 3 a middle part, 4 the last). The client has no reader in Python any more.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

CHUNK: Final = struct.Struct("<IHB")
HEADER: Final = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK: Final = 32768
NON_FINITE: Final = ("NaN", "Infinity", "-Infinity")
AXIS: Final = "trainer/step"


class DamagedFileError(Exception):
    """The file ends within a record, or a checksum does not match."""


def offline_records(path: Path) -> Iterator[Any]:
    """The protobuf records of a `.wandb` file, in order.

    Raises:
        DamagedFileError: Where the damage begins.
    """
    from wandb.proto import wandb_internal_pb2

    for payload in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        yield record


def items(content: Any) -> dict[str, Any]:
    """The items of a config or history record: dotted name to value."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in content if item.value_json}


def numbers(content: Any) -> dict[str, float]:
    """The scalars of a history record. Tables and pictures are nested items, W&B's own columns begin with "_"."""
    found = {}
    for item in content:
        name = item.key or item.nested_key[0]
        value = json.loads(item.value_json) if len(item.nested_key) < 2 else None
        if isinstance(value, (int, float)) or value in NON_FINITE:
            found[name] = float(value)
    return {name: value for name, value in found.items() if not name.startswith("_") and name != AXIS}


def _payloads(data: bytes) -> Iterator[bytes]:
    if data[: len(HEADER)] != HEADER:
        raise DamagedFileError(f"no W&B header: {data[:7]!r}")
    at, parts = len(HEADER), []
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < CHUNK.size:
            at += left
            continue
        if at + CHUNK.size > len(data):
            raise DamagedFileError("the file ends within a header")
        checksum, length, kind = CHUNK.unpack_from(data, at)
        end = at + CHUNK.size + length
        if end > len(data) or zlib.crc32(data[at + 6 : end]) != checksum:
            raise DamagedFileError(f"chunk at {at} is damaged")
        parts.append(data[at + CHUNK.size : end])
        at = end
        if kind in {1, 4}:
            yield b"".join(parts)
            parts = []
    if parts:
        raise DamagedFileError("the file ends within a record")
