"""What a framework writes over in place: made private in time, held back meanwhile, or told."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unified_tracker import _guard, _staging
from unified_tracker._guard import SMALL, make_private
from unified_tracker._rundir import RunDirectory
from unified_tracker._staging import Staging, changed, locate
from unified_tracker.records import StagedFile
from unified_tracker.testing import run_info

Usage = namedtuple("Usage", "total used free")
WEIGHTS = 4 * SMALL
WAIT_S = 60.0
leases = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has leases")
GUARD = "import sys; from pathlib import Path; from unified_tracker._guard import Guard; \
from unified_tracker._rundir import RunDirectory; Guard(RunDirectory(Path(sys.argv[1]))).start(); sys.stdin.read()"


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "run")
    found.create(run_info("memory"))
    return found


@pytest.fixture
def best(tmp_path: Path) -> Path:
    path = tmp_path / "model_best.pth"
    path.write_bytes(b"1" * WEIGHTS)
    return path


@pytest.fixture
def guard(directory: RunDirectory) -> Iterator[None]:
    """A guard as the uploader has one: in another process."""
    process = subprocess.Popen([sys.executable, "-c", GUARD, str(directory.path)], stdin=subprocess.PIPE)
    wait_until(directory.guarded)
    yield
    process.kill()
    process.communicate()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large disk with one gigabyte left."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1 << 40, (1 << 40) - (1 << 30), 1 << 30))


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def links(directory: RunDirectory, staged: StagedFile) -> int:
    return locate(directory.path, staged).stat().st_nlink


def content(directory: RunDirectory, staged: StagedFile) -> bytes:
    return locate(directory.path, staged).read_bytes()


@pytest.mark.usefixtures("guard")
def test_a_link_becomes_private_as_soon_as_it_appears(directory: RunDirectory, best: Path) -> None:
    staged = Staging(directory.path, 1).hold(best, best.name, "guarded")
    wait_until(lambda: links(directory, staged) == 1)
    best.write_bytes(b"2" * WEIGHTS)
    assert changed(directory.path, staged) is None
    assert content(directory, staged) == b"1" * WEIGHTS


@pytest.mark.usefixtures("guard")
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "plain loop"])
def test_of_a_file_written_over_again_and_again_each_version_arrives_as_logged_or_is_told(
    directory: RunDirectory, best: Path, adapter: bool
) -> None:
    staging = Staging(directory.path, 1)
    versions = []
    for number in range(30):
        if adapter:
            staging.before_rewrite(best)
        best.write_bytes(b"%d" % (number % 10) * WEIGHTS)
        versions.append((b"%d" % (number % 10) * WEIGHTS, staging.hold(best, best.name, "guarded")))
    told = 0
    for expected, staged in versions:
        wait_until(lambda staged=staged: links(directory, staged) == 1)
        told += changed(directory.path, staged) is not None
        assert changed(directory.path, staged) or content(directory, staged) == expected
    assert not adapter or told == 0


@leases
def test_who_writes_over_a_file_that_is_being_copied_waits_for_the_copy(
    directory: RunDirectory, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying, written = threading.Event(), threading.Event()
    real = _guard._copy_piece

    def slow(source: int, target: int, offset: int) -> int:
        copying.set()
        assert not written.wait(0.3), "the file was opened for writing while it was copied"
        return real(source, target, offset)

    def overwrite() -> None:
        copying.wait(WAIT_S)
        best.write_bytes(b"2" * WEIGHTS)
        written.set()

    monkeypatch.setattr(_guard, "_copy_piece", slow)
    with locked_out(directory):
        staged = Staging(directory.path, 1).hold(best, best.name, "guarded")
    writer = threading.Thread(target=overwrite)
    writer.start()
    assert make_private(locate(directory.path, staged))
    writer.join(WAIT_S)
    assert written.is_set()
    assert best.read_bytes() == b"2" * WEIGHTS
    assert changed(directory.path, staged) is None
    assert content(directory, staged) == b"1" * WEIGHTS


@leases
def test_a_guard_that_is_too_slow_lets_the_training_go_on_and_the_loss_is_told(
    directory: RunDirectory, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_guard, "CHUNK", WEIGHTS // 100)
    monkeypatch.setattr(_guard, "HOLD_BACK_S", 0.1)
    real = _guard._copy_piece

    def slow(source: int, target: int, offset: int) -> int:
        time.sleep(0.05)
        return real(source, target, offset)

    monkeypatch.setattr(_guard, "_copy_piece", slow)
    with locked_out(directory):
        staged = Staging(directory.path, 1).hold(best, best.name, "guarded")
    writer = threading.Timer(0.1, lambda: best.write_bytes(b"2" * WEIGHTS))
    writer.start()
    assert not make_private(locate(directory.path, staged))
    writer.join(WAIT_S)
    assert "written over in place" in str(changed(directory.path, staged))


@contextlib.contextmanager
def locked_out(directory: RunDirectory) -> Iterator[None]:
    """A guard that holds its lock and does nothing, in another process: locks know no threads."""
    script = "import sys; from pathlib import Path; from unified_tracker._rundir import RunDirectory\n\
with RunDirectory(Path(sys.argv[1])).guarding(): sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", script, str(directory.path)], stdin=subprocess.PIPE)
    wait_until(directory.guarded)
    yield
    process.communicate()


def test_without_a_guard_what_is_written_over_is_copied_at_once(directory: RunDirectory, best: Path) -> None:
    staged = Staging(directory.path, 1).hold(best, best.name, "guarded")
    assert links(directory, staged) == 1
    best.write_bytes(b"2" * WEIGHTS)
    assert content(directory, staged) == b"1" * WEIGHTS


def test_an_adapter_that_warns_needs_no_guard(directory: RunDirectory, best: Path) -> None:
    staging = Staging(directory.path, 1)
    staged = staging.hold(best, best.name, "link")
    staging.before_rewrite(best)
    best.write_bytes(b"2" * WEIGHTS)
    assert changed(directory.path, staged) is None
    assert content(directory, staged) == b"1" * WEIGHTS


def test_a_folder_that_is_written_over_is_made_private_file_by_file(directory: RunDirectory, tmp_path: Path) -> None:
    folder = tmp_path / "last"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(name.encode())
    staging = Staging(directory.path, 1)
    held = staging.hold_tree(folder, "link")
    staging.before_rewrite(folder)
    for name in ("a", "b"):
        (folder / name).write_bytes(b"2")
    assert [content(directory, staged) for staged in held] == [b"a", b"b"]


def test_the_same_size_in_the_same_tick_of_the_clock_is_told(directory: RunDirectory, best: Path) -> None:
    """As on a file system that tells times in milliseconds: the second write has the time of the first."""
    tick = best.stat().st_mtime_ns // 1_000_000 * 1_000_000
    os.utime(best, ns=(tick, tick))
    staged = Staging(directory.path, 1).hold(best, best.name, "link")
    best.write_bytes(b"2" * WEIGHTS)
    os.utime(best, ns=(tick, tick))
    assert "written over in place" in str(changed(directory.path, staged))


def test_the_same_file_logged_twice_is_no_change(directory: RunDirectory, best: Path) -> None:
    staging = Staging(directory.path, 1)
    twice = [staging.hold(best, best.name, "link") for _ in range(2)]
    assert [changed(directory.path, staged) for staged in twice] == [None, None]


def test_two_that_make_a_file_private_at_once_make_one_copy(directory: RunDirectory, best: Path) -> None:
    staged = Staging(directory.path, 1).hold(best, best.name, "link")
    path = locate(directory.path, staged)
    others = [threading.Thread(target=make_private, args=(path,)) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join(WAIT_S)
    assert links(directory, staged) == 1
    assert changed(directory.path, staged) is None
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_was_removed_needs_no_copy(directory: RunDirectory, best: Path) -> None:
    staged = Staging(directory.path, 1).hold(best, best.name, "link")
    locate(directory.path, staged).unlink()
    assert make_private(locate(directory.path, staged))


@pytest.mark.usefixtures("full")
def test_on_a_disk_that_is_nearly_full_a_checkpoint_is_linked_and_not_copied(
    directory: RunDirectory, best: Path
) -> None:
    staging = Staging(directory.path, 1)
    staged = staging.hold(best, best.name, "guarded")
    assert not make_private(locate(directory.path, staged))
    assert links(directory, staged) == 2
    staging.before_rewrite(best)
    best.write_bytes(b"2" * WEIGHTS)
    assert "written over in place" in str(changed(directory.path, staged))


@pytest.mark.usefixtures("full")
def test_on_a_disk_that_is_nearly_full_small_files_are_taken(directory: RunDirectory, best: Path) -> None:
    best.write_bytes(b"1" * SMALL)
    assert content(directory, Staging(directory.path, 1).hold(best, best.name, "copy")) == b"1" * SMALL


@pytest.mark.usefixtures("full")
def test_on_a_disk_that_is_nearly_full_a_copy_is_refused(directory: RunDirectory, best: Path) -> None:
    with pytest.raises(OSError, match=r"model_best.pth \(4 MiB\) would leave less"):
        Staging(directory.path, 1).hold(best, best.name, "copy")
    assert not any(path.is_file() for name in _staging.FOLDERS for path in (directory.path / name).glob("*"))


def test_a_clone_is_taken_where_the_file_system_has_them(
    directory: RunDirectory, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(target: int, request: int, source: int) -> int:
        assert request == _staging.FICLONE
        os.write(target, os.pread(source, WEIGHTS, 0))
        return 0

    monkeypatch.setattr(_staging.sys, "platform", "linux")
    monkeypatch.setattr(_staging.fcntl, "ioctl", clone)
    staged = Staging(directory.path, 1).hold(best, best.name, "guarded")
    assert staged.staged.startswith("files/")
    best.write_bytes(b"2" * WEIGHTS)
    assert changed(directory.path, staged) is None
    assert content(directory, staged) == b"1" * WEIGHTS
