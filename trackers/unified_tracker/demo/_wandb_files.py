"""Reading W&B's offline files, for the demo's summary: the records of a `.wandb` file, decoded by W&B's own protobuf.

The file is a 7-byte header and blocks of 32 KiB (counted from its start) of chunks: crc32 u32, length u16, kind u8
(1 whole record, 2 its first part, 3 a middle part, 4 the last). The client has no reader in Python any more.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

CHUNK: Final = struct.Struct("<IHB")
HEADER_BYTES: Final = 7
BLOCK: Final = 32768
WHOLE, FIRST, LAST = 1, 2, 4
NON_FINITE: Final = ("NaN", "Infinity", "-Infinity")
AXIS: Final = "trainer/step"


def offline_records(folder: Path) -> Iterator[Any]:
    """The protobuf records of the one run in a folder, in order."""
    from wandb.proto import wandb_internal_pb2

    for path in folder.glob("*.wandb"):
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
    at, parts = HEADER_BYTES, b""
    while at + CHUNK.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < CHUNK.size:  # too short for a header: padding
            at += left
            continue
        _, length, kind = CHUNK.unpack_from(data, at)
        at += CHUNK.size
        parts = data[at : at + length] if kind in {WHOLE, FIRST} else parts + data[at : at + length]
        at += length
        if kind in {WHOLE, LAST}:
            yield parts
