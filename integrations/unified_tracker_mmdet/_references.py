"""References in MMEngine's configurations: a storage backend for data sets, and a loader of checkpoints.

Registered by importing the package. What a reference means is asked once a process; every file after that is a look-up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.backends import BaseStorageBackend
from mmengine.runner import CheckpointLoader

from unified_tracker import TrackerError
from unified_tracker._access import Access
from unified_tracker._fetching import Fetched, fetched
from unified_tracker._reference import SCHEMES, parse

RUN_FILE: Final = re.compile(r"runs:/+(?P<run>[^/]+)/(?P<folder>[^/]+)(?:/(?P<path>.*))?")

_access = Access()
_loaded: set[str] = set()


def use(access: Access) -> None:
    """Set how backends are asked from now on. The hook does it; it is built before the data sets are."""
    global _access  # MMEngine has one registry of storage backends a process
    _access = access


def is_reference(text: str) -> bool:
    """Whether a path is one of a file in an artifact. Asks nobody."""
    return ":/" in text and parse(_plain(text)) is not None


def on_disk(text: str) -> str:
    """The same path on this machine; any other path as it is."""
    return str(_local(text)) if is_reference(text) else text


def fetched_for(text: str) -> Fetched | None:
    """What this process has fetched for a reference or a path in it; None if nothing. Asks nobody."""
    return fetched(_root(text)) if is_reference(text) else None


def was_loaded(text: str) -> bool:
    """Whether weights that a reference names were loaded in this process."""
    return text in _loaded


class ArtifactBackend(BaseStorageBackend):
    """Files of artifacts, by `<reference>/<path>`. Read only.

    Blocking: the first file of an artifact fetches all of it, the others cost what a local file costs.
    """

    def __init__(self, **_: Any) -> None:
        """`backend_args` of other storage backends mean nothing here."""

    def get(self, filepath: str | Path) -> bytes:
        """The bytes of a file."""
        return _local(filepath).read_bytes()

    def get_text(self, filepath: str | Path, encoding: str = "utf-8") -> str:
        """The text of a file."""
        return _local(filepath).read_text(encoding)

    @contextmanager
    def get_local_path(self, filepath: str | Path) -> Iterator[str]:
        """Where the file is. It is shared, and not to be written to."""
        yield str(_local(filepath))

    def exists(self, filepath: str | Path) -> bool:
        """Whether there is such a file or folder."""
        return self._is(filepath, Path.exists)

    def isfile(self, filepath: str | Path) -> bool:
        """Whether it is a file."""
        return self._is(filepath, Path.is_file)

    def isdir(self, filepath: str | Path) -> bool:
        """Whether it is a folder."""
        return self._is(filepath, Path.is_dir)

    def join_path(self, filepath: str | Path, *filepaths: str | Path) -> str:
        """A path below a reference. Where it names no alias, "latest" is put in: a path can only follow one."""
        text = str(filepath)
        reference = parse(_plain(text))
        if reference is not None and not reference.path and not reference.uri:
            text = str(reference)
        return "/".join([text.rstrip("/"), *(str(path).lstrip("/") for path in filepaths)])

    def list_dir_or_file(self, dir_path: str | Path, *args: Any, **kwargs: Any) -> Iterator[str]:
        """Names of what is below a folder, as `LocalBackend` gives them."""
        found: Iterator[str] = LocalBackend().list_dir_or_file(str(_local(dir_path)), *args, **kwargs)
        return found

    @staticmethod
    def _is(filepath: str | Path, what: Callable[[Path], bool]) -> bool:
        try:
            return what(_local(filepath))
        except TrackerError:
            return False


def load_from_artifact(filename: str, map_location: Any = None) -> Any:
    """Load a checkpoint by a reference to an artifact with one file of weights, or to a file in an artifact."""
    path = _access.weights(filename)
    _loaded.add(filename)
    return CheckpointLoader.load_checkpoint(str(path), map_location)


class WorkerStart:
    """What a worker process of a data loader does first. Importing this module is what it is for.

    A worker that was forked has everything already; one that was spawned has nothing but what it is sent.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then, self._access = then, _access

    def __call__(self, worker: int) -> None:
        """Called by PyTorch, in the worker."""
        use(self._access)
        if self._then is not None:
            self._then(worker)


def reach_workers(loader: Any) -> None:
    """Let the worker processes of a built data loader read references, however they are started."""
    start = getattr(loader, "worker_init_fn", None)
    if getattr(loader, "num_workers", 0) and not isinstance(start, WorkerStart):
        loader.worker_init_fn = WorkerStart(start)


def _local(path: str | Path) -> Path:
    text = _plain(str(path))
    if (found := RUN_FILE.fullmatch(text)) is not None and found["path"]:
        place = _access.fetch(_root(text)).folder / found["path"]
        if ".." in Path(found["path"]).parts or not place.exists():
            raise TrackerError(f"{_root(text)} holds no {found['path']!r}")
        return place
    return _access.file(text)


def _plain(text: str) -> str:
    """MMEngine finds a backend by "://", MLflow writes "models:/" and "runs:/"."""
    return re.sub(r"^(models|runs):/+", r"\1:/", text)


def _root(text: str) -> str:
    """The artifact's own reference: of a run's files, the folder at the top."""
    text = _plain(text)
    found = RUN_FILE.fullmatch(text)
    return f"runs:/{found['run']}/{found['folder']}" if found is not None else text


register_backend("unified_tracker", ArtifactBackend, force=True, prefixes=list(SCHEMES))
CheckpointLoader.register_scheme(
    [f"{scheme}://" if scheme.endswith("-artifact") else f"{scheme}:/" for scheme in SCHEMES],
    load_from_artifact,
    force=True,
)
