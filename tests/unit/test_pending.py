"""The list of runs that wait: it never hurts a training, and forgets only what is gone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from unified_tracker import _pending


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def run_directory(tmp_path: Path, name: str = "abcd1234") -> Path:
    path = tmp_path / "work" / name
    path.mkdir(parents=True)
    (path / "run.json").write_text("{}")
    return path


def test_what_is_remembered_is_found_until_it_is_forgotten(state: Path, tmp_path: Path) -> None:
    first, second = run_directory(tmp_path), run_directory(tmp_path, "efgh5678")
    for path in (first, first, second):
        _pending.remember(path)
    assert set(_pending.waiting()) == {first, second}
    _pending.forget(first)
    _pending.forget(first)
    assert list(_pending.waiting()) == [second]


def test_a_link_and_its_target_are_one_run(state: Path, tmp_path: Path) -> None:
    path = run_directory(tmp_path)
    (tmp_path / "link").symlink_to(path)
    _pending.remember(tmp_path / "link")
    assert list(_pending.waiting()) == [path.resolve()]
    _pending.forget(path)
    assert list(_pending.waiting()) == []


def test_a_run_that_was_removed_is_forgotten(state: Path, tmp_path: Path) -> None:
    path = run_directory(tmp_path)
    _pending.remember(path)
    (path / "run.json").unlink()
    assert list(_pending.waiting()) == []
    assert list(_pending.folder().iterdir()) == []


def test_a_run_on_another_machine_s_disk_is_left_to_that_machine(state: Path, tmp_path: Path) -> None:
    _pending.remember(run_directory(tmp_path))
    (file,) = _pending.folder().iterdir()
    file.write_bytes(msgspec.json.encode(_pending.Pointer("/scratch/run", "another-machine")))
    assert list(_pending.waiting()) == []
    assert file.exists()


def test_files_of_strangers_do_no_harm(state: Path, tmp_path: Path) -> None:
    _pending.remember(run_directory(tmp_path))
    (_pending.folder() / "broken.json").write_text("{")
    assert len(list(_pending.waiting())) == 1


def test_a_home_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))  # no folder can be made there, not even by root
    path = run_directory(tmp_path)
    _pending.remember(path)
    _pending.forget(path)
    assert list(_pending.waiting()) == []


def test_nobody_else_can_read_where_a_user_trains(state: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        _pending.remember(run_directory(tmp_path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(_pending.folder().stat().st_mode) == 0o700
