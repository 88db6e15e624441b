"""Fetching artifacts for a training: a helper process asks the backend and fills the cache, this one gets the path.

The training process imports no client. What a reference means is asked once for each group of processes that belong
together (ranks of one launch on one machine, loader workers), so that an alias that moves meanwhile cannot give two
of them different versions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from unified_tracker import _pins
from unified_tracker._errors import ConfigurationError, TrackerError
from unified_tracker._journal import now_ms
from unified_tracker._launcher import DISTRIBUTED, QUIET
from unified_tracker._reference import parse
from unified_tracker._versions import ArtifactVersion
from unified_tracker.records import Input

DESCRIPTIVE: Final = ("num_images", "images", "annotations", "num_objects", "classes", "step", "epoch", "framework")
WEIGHTS: Final = (".pth", ".pkl", ".pyth", ".pt")
Options = Mapping[str, Mapping[str, Any]]


class Fetched(msgspec.Struct, frozen=True):
    """An artifact on this machine.

    Attributes:
        text: The reference as it was given.
        version: What it meant.
        path: The folder that holds its files; shared, not to be written to.
    """

    text: str
    version: ArtifactVersion
    path: str

    @property
    def folder(self) -> Path:
        """`path`."""
        return Path(self.path)


class Wish(msgspec.Struct, frozen=True):
    """What the helper process is asked for."""

    text: str
    options: dict[str, Any]
    checked: bool


class Answer(msgspec.Struct, frozen=True):
    """What it says: something fetched, or why not."""

    fetched: Fetched | None = None
    error: str = ""
    configuration: bool = False


_fetched: dict[str, Fetched] = {}
_lock = threading.Lock()


def fetch(
    text: str,
    options: Options | None = None,
    *,
    checked: bool = False,
    environment: Mapping[str, str] | None = None,
    again: bool = False,
) -> Fetched:
    """The files of an artifact, fetched if this machine does not have them yet.

    Args:
        text: A reference.
        options: Backend name to its options, as in `start_run`, over those of `tracker.yaml` in the working folder.
        checked: They are complete already, as a run has them.
        environment: Credentials for the helper process.
        again: Ask the backend what the reference means now, although this process has asked before.

    Blocking: a helper process asks the backend (seconds) and downloads what is missing; not for a training's loop. In
    the same process the second time costs nothing.

    Raises:
        ConfigurationError: It is no reference, or its backend cannot be used.
        TrackerError: The backend does not answer, has no such version, or holds something that is refused.
    """
    reference = parse(text)
    if reference is None:
        raise ConfigurationError(f"{text!r} is no artifact reference")
    name = str(reference)
    given = (options or {}).get(reference.backend)
    with _lock:
        if not again and name in _fetched:
            return _fetched[name]
        wish = Wish(name, dict(given or {}), checked=checked and given is not None)
        found = _pins.shared(name, lambda: msgspec.json.encode(_ask(wish, environment or {})), _is_there)
        _fetched[name] = msgspec.json.decode(found, type=Fetched)
        return _fetched[name]


def fetched(text: str) -> Fetched | None:
    """What this process has fetched for a reference; None if nothing. Asks nobody."""
    reference = parse(text)
    return _fetched.get(str(reference)) if reference is not None else None


def local_path(text: str, options: Options | None = None) -> Path:
    """Where a file inside an artifact is, or the artifact's folder: "mlflow-artifact://name:alias/images/x.jpg".

    Raises:
        ConfigurationError, TrackerError: As `fetch`; and there is no such file.
    """
    reference = parse(text)
    if reference is None:
        raise ConfigurationError(f"{text!r} is no artifact reference")
    found = fetch(text, options)
    path = reference.path
    if reference.uri and not path and list(found.version.files) == [reference.name]:
        path = reference.name  # "runs:/<id>/folder/file" means the file
    place = found.folder / path
    if ".." in Path(path).parts or not place.exists():
        raise TrackerError(f"{found.version.reference} holds no {path!r}")
    return place


def weights_file(found: Fetched) -> Path:
    """The one file of weights in an artifact.

    Raises:
        TrackerError: There is none, or several.
    """
    files = sorted(path for path in found.folder.rglob("*") if path.suffix in WEIGHTS)
    if len(files) != 1:
        held = ", ".join(sorted(found.version.files)[:10]) or "nothing"
        raise TrackerError(
            f"{found.text} must hold exactly one file of weights ({', '.join(WEIGHTS)}), not {len(files)}; "
            f"it holds {held}"
        )
    return files[0]


def input_of(found: Fetched, role: str, **more: Any) -> Input:
    """The record of a run that uses an artifact.

    Args:
        found: What was fetched.
        role: As in `Input`.
        more: Other attributes of the record.
    """
    version = found.version
    content = version.metadata.get("digest") if version.type == "dataset" else None  # whether copied or referenced
    known = {key: value for key, value in version.metadata.items() if key in DESCRIPTIVE}
    return Input(
        now_ms(),
        role,
        version.type,
        found.text,
        version.name,
        version.version,
        str(content or version.digest),
        version.backend,
        version.uri,
        version.run,
        metadata={**known, "folder": found.path},
        **more,
    )


def _is_there(found: bytes) -> bool:
    try:
        return msgspec.json.decode(found, type=Fetched).folder.is_dir()
    except msgspec.MsgspecError:
        return False


def _ask(wish: Wish, environment: Mapping[str, str]) -> Fetched:
    """Let a helper process fetch. It inherits standard error, for its progress bar."""
    variables = {key: value for key, value in os.environ.items() if key not in DISTRIBUTED} | QUIET | dict(environment)
    done = subprocess.run(
        [sys.executable, "-m", "unified_tracker._fetcher"],
        input=msgspec.json.encode(wish),
        stdout=subprocess.PIPE,
        env=variables,
        check=False,
    )
    try:
        answer = msgspec.json.decode(done.stdout.rpartition(b"\n")[2], type=Answer)
    except msgspec.MsgspecError:
        raise TrackerError(f"{wish.text} cannot be fetched: the helper process ended with {done.returncode}") from None
    if answer.fetched is None:
        raise (ConfigurationError if answer.configuration else TrackerError)(answer.error)
    return answer.fetched
