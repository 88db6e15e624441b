"""Pins: what one process has found out, for the processes that belong to it.

Ranks of one launch and the workers of a data loader must agree on what an alias means, and need not all ask. A
subprocess that the user starts does not belong: it may want what the alias means by then.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from unified_tracker._cache import cache_folder
from unified_tracker._rundir import write_bytes


def shared(name: str, find_out: Callable[[], bytes], good: Callable[[bytes], bool]) -> bytes:
    """What the group of this process knows under a name; found out by the first of them that asks.

    Args:
        name: Of the question.
        find_out: Asks. The others wait meanwhile.
        good: Whether an answer that was found out earlier still holds.
    """
    pins = cache_folder() / "pins"
    pins.mkdir(parents=True, exist_ok=True, mode=0o700)
    group = _group()
    if group is None:
        found = find_out()
    else:
        pin = pins / _pin(group, name)
        with FileLock(f"{pin}.lock"):
            found = _read(pin, good) or find_out()
            write_bytes(pin, found)
    write_bytes(pins / _pin(_identity(os.getpid()), name), found)  # for workers of this process
    return found


def _group() -> str | None:
    """What the processes of one launch have in common on this machine; None for a process of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        return _identity(parent.pid)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        launch = [os.environ.get(key, "") for key in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")]
        return "-".join((_identity(os.getppid()), os.environ.get("MASTER_PORT", ""), *launch))
    return None


def _identity(pid: int) -> str:
    """A process id with the time at which it was started, where the system says it: ids are used again."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return f"{pid}-{started}"


def _pin(group: str, name: str) -> str:
    return hashlib.sha256(f"{group}\n{name}".encode()).hexdigest()[:32]


def _read(pin: Path, good: Callable[[bytes], bool]) -> bytes | None:
    try:
        found = pin.read_bytes()
    except OSError:
        return None
    return found if good(found) else None
