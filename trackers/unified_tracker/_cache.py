"""The cache: what has been fetched, one folder a version, shared by every process of the machine.

    <cache>/artifacts/<name>-<version>-<key>/content/...     the files; complete from the moment this folder is there
                                            /version.json    what the backend said, and each file's size, time, digest
                                            /partial/...     what an interrupted fetch has got so far
    <cache>/locks/<key>.lock

Nothing that comes from a backend is trusted: a path that would leave the folder, a link, and bytes with another digest
are refused, and nothing of such an artifact is put in place.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec
from filelock import FileLock

from unified_tracker._digest import file_digest
from unified_tracker._errors import TrackerError
from unified_tracker._rundir import write_bytes
from unified_tracker._versions import ArtifactVersion, FileInfo

VARIABLE: Final = "UNIFIED_TRACKER_CACHE"
CONTENT, PARTIAL, VERSION = "content", "partial", "version.json"
REFERENCES: Final = "references.json"  # of a data set whose images stay where they are
THREADS: Final = 8
LONGEST: Final = 255  # bytes of a file name, on every file system that we know
Download = Callable[[str, Path], None]
Progress = Callable[[int, int], None]  # files there, files in all


class CachedFile(msgspec.Struct, frozen=True):
    """A file as it was when it came into the cache."""

    size: int
    mtime_ns: int
    sha256: str


class CachedVersion(msgspec.Struct, frozen=True):
    """The content of `version.json`."""

    version: ArtifactVersion
    files: dict[str, CachedFile]


class Referenced(msgspec.Struct, frozen=True):
    """A file that belongs to an artifact and stays where it is."""

    path: str
    size: int
    sha256: str


def cache_folder() -> Path:
    """`$UNIFIED_TRACKER_CACHE`, else the user's cache folder."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute()
    from platformdirs import user_cache_path  # 15 ms: not at import

    return user_cache_path("unified-tracker", appauthor=False)


class Cache:
    """Artifacts on this machine.

    Crash: a fetch that was cut short leaves `partial`; the next one keeps the files of it whose digests are right.
    Processes: the first one fetches, the others wait for its lock and find everything there.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder()

    def place(self, version: ArtifactVersion) -> Path:
        """The folder of a version, whether it is there or not."""
        label = re.sub(r"[^\w.\-]", "_", f"{version.name}-{version.version}")[:100]
        return self.folder / "artifacts" / f"{label}-{_key(version)}"

    def get(self, version: ArtifactVersion, download: Download, progress: Progress | None = None) -> Path:
        """The files of a version, fetched if they are not there or no longer what they were.

        Args:
            version: Which.
            download: Writes the bytes of one file, named by its path in the artifact, to the given place. Called from
                several threads.
            progress: Told after each file.

        Returns:
            The folder that holds them. Not to be written to.

        Raises:
            TrackerError: It is hostile or damaged, or cannot be fetched. Nothing of it is in place.
            OSError: The cache cannot be written.
        """
        _refuse_unsafe(version, version.files)
        place = self.place(version)
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(locks / f"{_key(version)}.lock"):
            if not _complete(place):
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._fill(place, version, download, progress or (lambda *_: None))
        return place / CONTENT

    def _fill(self, place: Path, version: ArtifactVersion, download: Download, progress: Progress) -> None:
        partial = place / PARTIAL
        if (place / CONTENT).is_dir():  # damaged: what is still right is kept
            shutil.rmtree(partial, ignore_errors=True)
            (place / CONTENT).rename(partial)
        partial.mkdir(exist_ok=True, mode=0o700)
        _remove_links(partial)
        count = itertools.count(1)

        def one(item: tuple[str, FileInfo]) -> tuple[str, CachedFile]:
            path, info = item
            found = _known(partial / path, info) or _fetched(version, partial, path, info, download)
            progress(next(count), len(version.files))
            return path, found

        with ThreadPoolExecutor(THREADS) as threads:
            files = dict(threads.map(one, version.files.items()))
        files |= _referenced(version, partial)
        _remove_others(partial, files)
        write_bytes(place / VERSION, msgspec.json.encode(CachedVersion(version, files)))
        partial.rename(place / CONTENT)


def _key(version: ArtifactVersion) -> str:
    return hashlib.sha256(f"{version.backend}\n{version.uri}\n{version.digest}".encode()).hexdigest()[:16]


def _refuse_unsafe(version: ArtifactVersion, paths: Collection[str]) -> None:
    """Raise if a path, joined to a folder, could mean anything outside, or two mean the same place."""
    folders = {parent.as_posix() for path in paths for parent in PurePosixPath(path).parents}
    for path in paths:
        if not _is_safe(path):
            raise TrackerError(
                f"{version.reference} is refused: it holds a file named {path!r}, which is no place inside a folder"
            )
        if path in folders:
            raise TrackerError(f"{version.reference} is refused: {path!r} is a file and a folder in it")
    if len(set(paths)) < len(paths):
        raise TrackerError(f"{version.reference} is refused: it names a file twice")


def _is_safe(path: str) -> bool:
    parts = path.split("/")
    return (
        not any(part in {"", ".", ".."} for part in parts)
        and all(len(part.encode("utf-8", "surrogatepass")) <= LONGEST for part in parts)
        and not any(character in path for character in "\\\0")
        and re.match(r"[A-Za-z]:", path) is None
    )


def _complete(place: Path) -> bool:
    """Whether everything is there as it was. Costs one `stat` a file; only files that look different are read."""
    content = place / CONTENT
    if not content.is_dir():
        return False
    try:
        cached = msgspec.json.decode((place / VERSION).read_bytes(), type=CachedVersion)
    except (OSError, msgspec.MsgspecError):
        return False
    for path, file in cached.files.items():
        try:
            now = (content / path).stat()
        except OSError:
            return False
        if now.st_size != file.size:
            return False
        if now.st_mtime_ns != file.mtime_ns and file_digest(content / path) != file.sha256:
            return False
    return True


def _known(target: Path, info: FileInfo) -> CachedFile | None:
    """A file of an earlier try, if it is certainly the right one."""
    if not info.digest or not target.is_file() or target.is_symlink():
        return None
    sha256 = file_digest(target)
    return _cached(target, sha256) if _matches(target, sha256, info) else None


def _fetched(version: ArtifactVersion, folder: Path, path: str, info: FileInfo, download: Download) -> CachedFile:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    arriving = target.with_name(f".{hashlib.sha256(path.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.arriving")
    arriving.unlink(missing_ok=True)
    try:
        download(path, arriving)
        if not stat.S_ISREG(arriving.lstat().st_mode):
            raise TrackerError(f"{version.reference} is refused: {path!r} is a link, not a file")
        sha256 = file_digest(arriving)
        if not _matches(arriving, sha256, info):
            raise TrackerError(
                f"{version.reference} is refused: {path!r} has other bytes than recorded ({arriving.stat().st_size} "
                f"bytes, sha256 {sha256}; {info.size} bytes, {info.digest or 'no digest'} were expected)"
            )
        arriving.chmod(0o444)  # shared: nobody may write to it by mistake
        os.replace(arriving, target)
    finally:
        arriving.unlink(missing_ok=True)
    return _cached(target, sha256)


def _matches(file: Path, sha256: str, info: FileInfo) -> bool:
    if info.size is not None and file.stat().st_size != info.size:
        return False
    kind, _, expected = info.digest.partition(":")
    if kind == "sha256":
        return sha256 == expected
    return kind != "md5" or file_digest(file, "md5") == expected  # W&B has nothing else


def _cached(file: Path, sha256: str) -> CachedFile:
    now = file.stat()
    return CachedFile(now.st_size, now.st_mtime_ns, sha256)


def _referenced(version: ArtifactVersion, folder: Path) -> dict[str, CachedFile]:
    """Put files that stay where they are beside the others, as links. Only with the right bytes."""
    listing = folder / REFERENCES
    if version.type != "dataset" or REFERENCES not in version.files or not listing.is_file():
        return {}
    try:
        given = msgspec.json.decode(listing.read_bytes(), type=dict[str, Referenced])
    except msgspec.MsgspecError as error:
        raise TrackerError(f"{version.reference} is refused: its {REFERENCES} is damaged: {error}") from error
    _refuse_unsafe(version, [*version.files, *given])
    missing = [each.path for each in given.values() if not os.path.isfile(each.path)]
    if missing:
        raise TrackerError(
            f"{version.reference} holds references, and {len(missing)} of {len(given)} files are not on this machine "
            f"(first: {missing[0]}): make them visible under the same paths, or create the data set with --images copy"
        )
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(threads.map(lambda item: (item[0], _placed(version, folder, *item)), given.items()))


def _placed(version: ArtifactVersion, folder: Path, path: str, referenced: Referenced) -> CachedFile:
    source, target = Path(referenced.path).resolve(), folder / path
    if source.stat().st_size != referenced.size or file_digest(source) != referenced.sha256:
        raise TrackerError(f"{version.reference}: {source} has changed since the data set was made")
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        target.symlink_to(source)
    return _cached(target, referenced.sha256)


def _remove_links(folder: Path) -> None:
    """Of an earlier try only plain files are taken."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


def _remove_others(folder: Path, files: Mapping[str, CachedFile]) -> None:
    for path in folder.rglob("*"):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in files:
            path.unlink()
