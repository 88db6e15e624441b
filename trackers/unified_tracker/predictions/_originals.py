"""Originals: the pictures of a sample as they were evaluated, kept in the run directory for as long as it stands."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from unified_tracker.predictions._sheets import ImageSheet


class Originals:
    """The folder `predictions/images` of a run directory."""

    def __init__(self, run_dir: Path, folder: Path) -> None:
        self._run_dir, self._folder = run_dir, folder

    def _place(self, image: ImageSheet) -> Path:
        """Where the private copy of a picture is, or will be."""
        source = Path(image.file)
        if not source.is_absolute():  # given as an array, and written by the training
            return self._run_dir / source
        known = f"{image.file}/{image.size}/{image.mtime_ns}".encode("utf-8", "surrogatepass")
        return self._folder / (hashlib.blake2b(known, digest_size=8).hexdigest() + source.suffix.lower())

    def find(self, image: ImageSheet) -> Path | None:
        """The private copy, if there is one and its bytes are those that the training saw."""
        path = self._place(image)
        try:
            stat = path.stat()
        except OSError:
            return None
        same = (stat.st_size, stat.st_mtime_ns) == (image.size, image.mtime_ns)
        return path if image.file and same else None

    def keep(self, image: ImageSheet) -> Path | str:
        """Link or copy a picture; gives where it is now, or why there is none."""
        kept = self.find(image)
        if kept is not None:
            return kept
        if not image.file:
            return "no picture was given"
        target = self._place(image)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            _link_or_copy(image.file, temporary)
            stat = temporary.stat()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            return f"{image.name} cannot be read: {error.strerror or error}"
        if (stat.st_size, stat.st_mtime_ns) != (image.size, image.mtime_ns):
            temporary.unlink()
            return f"{image.name} has changed since it was evaluated"
        temporary.replace(target)
        return target


def _link_or_copy(source: str, target: Path) -> None:
    """A link takes no room; nobody writes images of a data set in place, and if so, `find` sees it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
