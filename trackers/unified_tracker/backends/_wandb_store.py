"""The store: small files that W&B uploads from, each named by its content, so that the same one is written once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = "media"
NAME: Final = 20  # hexadecimal digits; as many as W&B's client uses


@dataclass(frozen=True)
class Stored:
    """A file, here or elsewhere, with the hash by which W&B's tables name it."""

    file: Path
    sha256: str

    @property
    def name(self) -> str:
        """A short name for the content."""
        return self.sha256[:NAME]


class Store:
    """A folder in the run directory. Offline its files stay: `wandb sync` reads them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def put(self, content: bytes, suffix: str) -> Stored:
        """Keep this content in a file with this suffix."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._folder / f"{sha256[:NAME]}{suffix}"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(path)
        return Stored(path, sha256)

    def release(self, files: Iterable[Path]) -> None:
        """Remove those of the files that are the store's own: the server has them."""
        for file in files:
            if file.parent == self._folder:
                file.unlink(missing_ok=True)


def stored(path: Path) -> Stored:
    """A file that lies elsewhere and stays as it is."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return Stored(path, digest.hexdigest())
