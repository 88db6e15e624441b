"""Digests: the identity of content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

CHUNK = 1 << 20


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """SHA-256 of a file, or another algorithm of `hashlib`, as hex digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_digest(files: Mapping[str, Path]) -> tuple[str, dict[str, str]]:
    """SHA-256 over names and contents of files, independent of their order, and the digest of each file."""
    each = {name: file_digest(path) for name, path in sorted(files.items())}
    whole = hashlib.sha256()
    for name, digest in each.items():
        whole.update(f"{digest}  {name}\n".encode("utf-8", "surrogatepass"))
    return whole.hexdigest(), each
