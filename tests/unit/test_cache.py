"""Fetched once, whole, verified; and nothing that comes from elsewhere leaves its folder."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_tracker import TrackerError
from unified_tracker._cache import Cache, Referenced
from unified_tracker._versions import ArtifactVersion, FileInfo

CONTENT = {"annotations.json": b"{}", "images/a.jpg": b"one", "images/b c#%20é.jpg": b"two" * 1000}

FETCHING = """
import hashlib, sys, time
from pathlib import Path
from unified_tracker._cache import Cache
from unified_tracker._versions import ArtifactVersion, FileInfo

folder, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
content = {f"images/{i:02}.jpg": f"{i}".encode() * 100 for i in range(12)}
files = {path: FileInfo(len(data), "sha256:" + hashlib.sha256(data).hexdigest()) for path, data in content.items()}

def download(path, target):
    with log.open("a") as said:
        said.write(path + "\\n")
    time.sleep(pause)
    target.write_bytes(content[path])

version = ArtifactVersion("mlflow", None, "many", "v0", "dataset", "d", "runs:/1/many/v0", files)
path = Cache(folder).get(version, download)
assert all((path / name).read_bytes() == data for name, data in content.items())
"""


def version(content: dict[str, bytes], kind: str = "dataset", **files: FileInfo) -> ArtifactVersion:
    known = {path: FileInfo(len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") for path, data in content.items()}
    return ArtifactVersion("mlflow", None, "set", "v0", kind, "d", "runs:/1/set/v0", {**known, **files})


def serving(content: dict[str, bytes], asked: list[str] | None = None) -> Callable[[str, Path], None]:
    def download(path: str, target: Path) -> None:
        if asked is not None:
            asked.append(path)
        target.write_bytes(content[path])

    return download


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def arrived(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.jpg") if not path.name.startswith(".")}


def test_the_files_are_there_and_fetched_once(tmp_path: Path) -> None:
    asked: list[str] = []
    for _ in range(3):
        path = Cache(tmp_path).get(version(CONTENT), serving(CONTENT, asked))
        assert {name: (path / name).read_bytes() for name in everything(path)} == CONTENT
    assert sorted(asked) == sorted(CONTENT)


def test_two_processes_that_ask_at_once_fetch_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", FETCHING, str(tmp_path / "cache"), str(log), "0.02"]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert sorted(log.read_text().split()) == [f"images/{i:02}.jpg" for i in range(12)]


def test_a_fetch_that_is_killed_goes_on_with_what_it_has(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", FETCHING, str(tmp_path / "cache"), str(log)]
    process = subprocess.Popen([*command, "0.5"], start_new_session=True)
    end = time.monotonic() + 60
    while not arrived(tmp_path / "cache"):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    kept = arrived(tmp_path / "cache")
    assert 0 < len(kept) < 12
    assert not list((tmp_path / "cache").rglob("content"))
    log.unlink()
    subprocess.run([*command, "0"], check=True, timeout=60)
    again = {path.rpartition("/")[2] for path in log.read_text().split()}
    assert again == {f"{i:02}.jpg" for i in range(12)} - kept


def test_an_error_leaves_nothing_in_place_and_the_next_try_is_clean(tmp_path: Path) -> None:
    def failing(path: str, target: Path) -> None:
        target.write_bytes(b"half")
        if path.endswith(".json"):
            raise ConnectionError("gone")
        target.write_bytes(CONTENT[path])

    with pytest.raises(ConnectionError):
        Cache(tmp_path).get(version(CONTENT), failing)
    assert not Cache(tmp_path).place(version(CONTENT)).joinpath("content").exists()
    path = Cache(tmp_path).get(version(CONTENT), serving(CONTENT))
    assert everything(path) == set(CONTENT)


def test_a_file_that_was_changed_in_the_cache_is_fetched_again_and_no_other(tmp_path: Path) -> None:
    path = Cache(tmp_path).get(version(CONTENT), serving(CONTENT))
    damaged = path / "images/a.jpg"
    damaged.chmod(0o644)
    damaged.write_bytes(b"bad")
    asked: list[str] = []
    path = Cache(tmp_path).get(version(CONTENT), serving(CONTENT, asked))
    assert damaged.read_bytes() == b"one"
    assert asked == ["images/a.jpg"]


def test_files_in_the_cache_cannot_be_written_by_mistake(tmp_path: Path) -> None:
    path = Cache(tmp_path).get(version(CONTENT), serving(CONTENT))
    assert (path / "images/a.jpg").stat().st_mode & 0o777 == 0o444


HOSTILE = [
    "/etc/evil",
    "../evil",
    "images/../../evil",
    "images/..",
    "..",
    ".",
    "",
    "a//b",
    "a/./b",
    "a\\..\\evil",
    "C:evil",
    "a\0b",
    "x" * 300,
    "images/",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_that_is_no_place_inside_a_folder_is_refused_before_anything_is_fetched(
    path: str, tmp_path: Path
) -> None:
    asked: list[str] = []
    cache = tmp_path / "deep" / "cache"
    with pytest.raises(TrackerError, match="refused"):
        Cache(cache).get(version({**CONTENT, path: b"evil"}), serving({**CONTENT, path: b"evil"}, asked))
    assert (asked, everything(tmp_path)) == ([], set())


@given(
    st.lists(
        st.lists(
            st.sampled_from(["..", ".", "", "a", "b", "é", "\\", "a:b", "C:", "\0", " "]), min_size=1, max_size=4
        ).map("/".join),
        min_size=1,
        max_size=4,
        unique=True,
    )
)
def test_whatever_the_names_nothing_is_written_outside(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    content = dict.fromkeys(names, b"x")
    try:
        path = Cache(folder / "cache").get(version(content), serving(content))
    except TrackerError:
        assert not list(folder.rglob("content"))
    else:
        assert everything(path) == set(names)
    assert {each.name for each in folder.iterdir()} <= {"cache"}


def test_a_link_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"one")

    def linking(path: str, target: Path) -> None:
        target.symlink_to(secret)

    with pytest.raises(TrackerError, match="is a link"):
        Cache(tmp_path / "cache").get(version({"images/a.jpg": b"one"}), linking)
    assert not any(path.is_symlink() for path in (tmp_path / "cache").rglob("*"))


def test_a_link_that_an_earlier_try_left_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = Cache(tmp_path / "cache").place(version(CONTENT)) / "partial"
    place.mkdir(parents=True)
    (place / "images").symlink_to(outside)
    Cache(tmp_path / "cache").get(version(CONTENT), serving(CONTENT))
    assert everything(outside) == set()


@pytest.mark.parametrize("info", [FileInfo(3, "sha256:" + "0" * 64), FileInfo(3, "md5:" + "0" * 32), FileInfo(4, "")])
def test_other_bytes_than_recorded_are_refused(info: FileInfo, tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match="other bytes than recorded"):
        Cache(tmp_path).get(version({}, **{"a.jpg": info}), serving({"a.jpg": b"one"}))
    assert not [path for path in tmp_path.rglob("*") if path.name == "a.jpg"]


def test_a_file_and_a_folder_of_one_name_are_refused(tmp_path: Path) -> None:
    content = {"a": b"1", "a/b": b"2"}
    with pytest.raises(TrackerError, match="file and a folder"):
        Cache(tmp_path).get(version(content), serving(content))


# ---- by reference -------------------------------------------------------------------------------------------------


def references(**files: tuple[Path, bytes]) -> dict[str, bytes]:
    listing = {
        path: Referenced(str(source), len(data), hashlib.sha256(data).hexdigest())
        for path, (source, data) in files.items()
    }
    return {"annotations.json": b"{}", "references.json": msgspec.json.encode(listing)}


def test_referenced_images_stand_beside_the_others_without_being_copied(tmp_path: Path) -> None:
    original = tmp_path / "mine.jpg"
    original.write_bytes(b"picture")
    content = references(**{"images/mine.jpg": (original, b"picture")})
    path = Cache(tmp_path / "cache").get(version(content), serving(content))
    assert (path / "images/mine.jpg").samefile(original)
    assert original.stat().st_mode & 0o200  # protection is for what is ours


def test_a_reference_to_a_file_with_other_bytes_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_bytes(b"private key")
    content = references(**{"images/mine.jpg": (secret, b"0123456789a")})
    with pytest.raises(TrackerError, match="has changed"):
        Cache(tmp_path / "cache").get(version(content), serving(content))
    assert not list((tmp_path / "cache").rglob("mine.jpg"))


def test_a_reference_that_is_put_outside_is_refused(tmp_path: Path) -> None:
    original = tmp_path / "mine.jpg"
    original.write_bytes(b"picture")
    content = references(**{"../../../../mine2.jpg": (original, b"picture")})
    with pytest.raises(TrackerError, match="refused"):
        Cache(tmp_path / "cache").get(version(content), serving(content))
    assert {path.name for path in tmp_path.iterdir()} == {"mine.jpg", "cache"}


def test_references_to_files_of_another_machine_say_so(tmp_path: Path) -> None:
    content = references(**{"images/mine.jpg": (tmp_path / "elsewhere.jpg", b"picture")})
    with pytest.raises(TrackerError, match=r"1 of 1 files are not on this machine .*--images copy"):
        Cache(tmp_path / "cache").get(version(content), serving(content))


def test_threads_that_ask_at_once_get_the_same_folder(tmp_path: Path) -> None:
    found: list[Path] = []
    asked: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(Cache(tmp_path).get(version(CONTENT), serving(CONTENT, asked))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert sorted(asked) == sorted(CONTENT)
