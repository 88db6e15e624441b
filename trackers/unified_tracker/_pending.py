"""Where runs of this user wait: a small file for each run directory that is not delivered, in the user's state folder.

It is what lets `sync --all` find them. Losing it costs nothing but that: the run directory itself says everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import msgspec


class Pointer(msgspec.Struct, frozen=True):
    """The content of one file: a run directory, and the machine on which that path means it."""

    path: str
    host: str


def folder() -> Path:
    """Where the files are.

    Raises:
        OSError, RuntimeError, KeyError: This user has no home.
    """
    from platformdirs import user_state_path  # 15 ms: not at import

    return user_state_path("unified-tracker", appauthor=False) / "pending"


def remember(run_dir: Path) -> None:
    """Note that a run directory waits. Never fails: a home that cannot be written is no reason to stop a training."""
    with contextlib.suppress(OSError, RuntimeError, KeyError):
        path = run_dir.resolve()
        file = folder() / _name(path)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_bytes(msgspec.json.encode(Pointer(str(path), platform.node())))
        os.replace(temporary, file)


def forget(run_dir: Path) -> None:
    """Note that a run directory is delivered. Never fails."""
    with contextlib.suppress(OSError, RuntimeError, KeyError):
        (folder() / _name(run_dir.resolve())).unlink(missing_ok=True)


def waiting() -> Iterator[Path]:
    """Every run directory that was remembered, and still is there.

    What this machine has removed is forgotten. What another machine remembers, in a home that both share, is left
    alone unless it can be seen from here.
    """
    try:
        files = sorted(folder().glob("*.json"))
    except (OSError, RuntimeError, KeyError):
        return
    for file in files:
        try:
            pointer = msgspec.json.decode(file.read_bytes(), type=Pointer)
        except (OSError, msgspec.MsgspecError):
            continue  # just removed, or written by another version
        path = Path(pointer.path)
        if _there(path):
            yield path
        elif pointer.host == platform.node():
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def _there(path: Path) -> bool:
    """False if a run directory is gone; one that cannot be looked at (a mount that hangs or refuses) is not gone."""
    try:
        (path / "run.json").stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _name(path: Path) -> str:
    """The same name for the same path; readable by its beginning."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=6).hexdigest()
    return f"{path.name[-40:]}-{digest}.json"
