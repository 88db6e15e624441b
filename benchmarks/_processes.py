"""The processes of an uploader, seen through /proc: how much memory they hold, and ending them. Linux."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path


def uploaders(folder: str | Path) -> list[int]:
    """Process ids of the uploaders of run directories in a folder."""
    found = []
    for pid, command in _commands():
        if "unified_tracker._uploader" in command and str(folder) in command:
            found.append(pid)
    return found


def tree(root: int) -> dict[int, str]:
    """A process and everything below it: process id to what it is."""
    parents: dict[int, list[int]] = {}
    commands = dict(_commands())
    for pid in commands:
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(pid)
    found, queue = {}, [root]
    while queue:
        pid = queue.pop()
        found[pid] = _name(commands.get(pid, ""))
        queue += parents.get(pid, [])
    return found


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 when it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def wait_until_idle(root: int, limit_s: float = 120.0) -> None:
    """Wait until a process and what is below it use less than a tenth of a core for two seconds."""
    over = time.monotonic() + limit_s
    used = _cpu_s(root)
    while time.monotonic() < over:
        time.sleep(2)
        before, used = used, _cpu_s(root)
        if used - before < 0.2:
            return


def _cpu_s(root: int) -> float:
    ticks = 0
    for pid in tree(root):
        with contextlib.suppress(OSError, ValueError, IndexError):
            ticks += _ticks(pid)
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class MemoryWatch:
    """Samples the resident memory of a tree of processes, ten times a second.

    Attributes:
        peak_mib: Highest sum over the tree; pages that processes share count in each.
        peaks: Highest value of each kind of process.
    """

    def __init__(self, root: int) -> None:
        self.peak_mib = 0.0
        self.peaks: dict[str, float] = {}
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            total = 0.0
            for pid, name in tree(self._root).items():
                size = resident_mib(pid)
                total += size
                self.peaks[name] = max(self.peaks.get(name, 0.0), size)
            self.peak_mib = max(self.peak_mib, total)

    def end(self) -> None:
        self._over.set()
        self._thread.join()


class CpuWatch:
    """Adds up the processor time of trees of processes, also of those that end meanwhile. Looks ten times a second."""

    def __init__(self, roots: Callable[[], list[int]]) -> None:
        self._roots, self._used, self._over = roots, dict[int, float](), threading.Event()
        self._look()
        self._before = dict(self._used)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._look()

    def _look(self) -> None:
        for root in self._roots():
            for pid in tree(root):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    self._used[pid] = _ticks(pid) / os.sysconf("SC_CLK_TCK")

    def end(self) -> float:
        """Seconds of processor time since the beginning."""
        self._over.set()
        self._thread.join()
        self._look()
        return sum(used - self._before.get(pid, 0.0) for pid, used in self._used.items())


def end_uploaders(folder: str | Path) -> None:
    """End what still delivers run directories in a folder, with everything that it has started."""
    for root in uploaders(folder):
        for pid in tree(root):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)


def _commands() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def _name(command: str) -> str:
    """What a process of ours is, by the module that it runs; else its program."""
    words = command.split()
    for word in words[:6]:
        if word.startswith("unified_tracker."):
            return word.removeprefix("unified_tracker.").lstrip("_")
    return words[0].rpartition("/")[2] if words else "?"
