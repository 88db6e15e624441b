"""The bytes that were logged are the bytes that arrive, or it is said that they are others."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from unified_tracker._staging import Staging, changed, locate


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    (tmp_path / "run").mkdir()
    return Staging(tmp_path / "run", attempt=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "epoch_1.pth"
    path.write_bytes(b"weights of epoch 1")
    return path


def test_a_link_survives_rotation_renaming_and_replacement(tmp_path: Path, staging: Staging, source: Path) -> None:
    staged = staging.hold(source, "a.pth", "link")
    other = tmp_path / "other"
    other.write_bytes(b"weights of epoch 2")
    os.replace(other, source)
    source.unlink()
    assert changed(tmp_path / "run", staged) is None
    assert locate(tmp_path / "run", staged).read_bytes() == b"weights of epoch 1"


def test_a_link_whose_file_is_written_over_in_place_is_told(tmp_path: Path, staging: Staging, source: Path) -> None:
    staged = staging.hold(source, "a.pth", "link")
    source.write_bytes(b"weights of epoch 2")
    os.utime(source, ns=(0, staged.mtime_ns + 1))
    assert "written over in place" in str(changed(tmp_path / "run", staged))


def test_a_copy_does_not_care_what_happens_to_the_file(tmp_path: Path, staging: Staging, source: Path) -> None:
    staged = staging.hold(source, "a.pth", "copy")
    source.write_bytes(b"weights of epoch 2")
    assert changed(tmp_path / "run", staged) is None
    assert locate(tmp_path / "run", staged).read_bytes() == b"weights of epoch 1"


def test_a_vanished_file_is_told(tmp_path: Path, staging: Staging, source: Path) -> None:
    staged = staging.hold(source, "a.pth", "link")
    locate(tmp_path / "run", staged).unlink()
    assert "vanished" in str(changed(tmp_path / "run", staged))


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP])
def test_where_links_are_refused_the_file_is_copied(tmp_path: Path, staging: Staging, source: Path, error: int) -> None:
    with mock.patch("os.link", side_effect=OSError(error, "no links here")):
        staged = staging.hold(source, "a.pth", "link")
    source.write_bytes(b"weights of epoch 2")
    assert locate(tmp_path / "run", staged).read_bytes() == b"weights of epoch 1"


def test_a_folder_is_held_whole_or_not_at_all(tmp_path: Path, staging: Staging) -> None:
    folder = tmp_path / "sharded"
    (folder / "optimizer").mkdir(parents=True)
    for name in ("a.bin", "optimizer/b.bin", "empty"):
        (folder / name).write_bytes(name.encode() if name != "empty" else b"")
    staged = staging.hold_tree(folder, "link")
    assert {file.path: locate(tmp_path / "run", file).read_bytes() for file in staged} == {
        "a.bin": b"a.bin",
        "optimizer/b.bin": b"optimizer/b.bin",
        "empty": b"",
    }
    before = sorted((tmp_path / "run").rglob("*"))
    real = shutil.copyfile

    def full(source: Path, target: Path, **options: Any) -> Any:
        if Path(source).name == "b.bin":
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target, **options)

    with mock.patch("shutil.copyfile", full), pytest.raises(OSError, match="No space left"):
        staging.hold_tree(folder, "copy")
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_a_full_disk_leaves_no_half_of_what_was_in_memory(tmp_path: Path, staging: Staging) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with mock.patch.object(Path, "write_bytes", full), pytest.raises(OSError, match="No space left"):
        staging.write("table.json", b"content")
    assert list((tmp_path / "run" / "files").iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "é" * 200, "a/b/c", "..", "\udcff.pth", "a\nb", ""])
def test_any_name_can_be_staged(tmp_path: Path, staging: Staging, name: str) -> None:
    staged = staging.write(name, b"content")
    path = locate(tmp_path / "run", staged)
    assert path.read_bytes() == b"content"
    assert path.parent == tmp_path / "run" / "files"
    staged.path.encode()


def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path, staging: Staging) -> None:
    with pytest.raises(FileNotFoundError, match="is neither a file nor a folder"):
        staging.hold_tree(tmp_path / "nothing", "copy")


def test_a_shared_link_takes_no_room_and_is_left_alone(tmp_path: Path, staging: Staging, source: Path) -> None:
    alias = tmp_path / "alias.pth"
    alias.symlink_to(source)
    before = source.stat().st_mtime_ns
    for path in (source, alias):
        held = locate(tmp_path / "run", staging.hold(path, "a.pth", "shared"))
        assert held.parent.name in {"shared", "files"} and not held.is_symlink()  # files: where there are clones
        assert held.parent.name == "files" or held.stat().st_ino == source.stat().st_ino
    assert source.stat().st_mtime_ns == before


def test_files_from_anywhere_are_held_all_or_none(tmp_path: Path, staging: Staging, source: Path) -> None:
    held = staging.hold_all([("images/a.jpg", source), ("b", source)], "copy")
    assert [file.path for file in held] == ["images/a.jpg", "b"]
    with pytest.raises(OSError):
        staging.hold_all([("c", source), ("d", tmp_path / "none")], "copy")
    assert len(list((tmp_path / "run" / "files").iterdir())) == 2
