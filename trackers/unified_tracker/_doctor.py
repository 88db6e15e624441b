"""What `doctor` looks at: packages, backends, folders, clock, uploader, and what is not delivered yet.

Nothing is imported that a training would not have, and no value of a credential is shown: findings pass `_clean`.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rich.filesize import decimal

from unified_tracker import _pending, _plugins, _settings
from unified_tracker._delivery import Outcome, deliveries
from unified_tracker._errors import ConfigurationError
from unified_tracker._mask import is_secret_name, mask_text
from unified_tracker._rundir import PARENT
from unified_tracker._start import RunSettings, checked_backends
from unified_tracker._tracker import Finding, Level

PACKAGES: Final = ("unified-tracker", "mlflow", "wandb", "torch", "mmengine", "mmcv", "mmdet", "numpy", "pandas")
DETECTRON2: Final = ("detectron2", "sal-detectron2")  # the index has no official one
LITTLE_SPACE: Final = 2 << 30
NO_SPACE: Final = 200 << 20
START_S: Final = 60.0
NETWORK: Final = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|lustre|beegfs|gpfs|afs|ceph|glusterfs|9p|davfs|ncpfs|panfs|orangefs|fuse\.(?!lxcfs).*"
)
VOLATILE: Final = frozenset({"tmpfs", "ramfs"})
USERINFO: Final = re.compile(r"(?<=://)[^/\s@]+@")


def examine(folder: Path) -> list[Finding]:
    """Look at everything. Takes some seconds where a server does not answer; never raises.

    Args:
        folder: Where a training would be started: its `tracker.yaml` counts, and runs below it.
    """
    findings: list[Finding] = []
    for look in (_packages, _incompatibilities, _backends, _place, _uploader, _undelivered):
        findings += _safely(look, folder)
    return [_clean(finding) for finding in findings]


def _safely(look: Callable[[Path], Iterator[Finding]], folder: Path) -> Iterator[Finding]:
    """What a look finds; one that fails must not hide the others."""
    try:
        yield from look(folder)
    except Exception as error:  # noqa: BLE001 -- it becomes a finding
        text = f"cannot be looked at: {type(error).__name__}: {error}"
        yield Finding(look.__name__.strip("_"), "warning", text, "please report this")


# ---- packages ------------------------------------------------------------------------------------------------------


def _packages(folder: Path) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    if os.name == "nt":
        yield Finding("python", "error", "recording is not supported on Windows yet", "use WSL, or tracker='off'")
    found = {name: version for name in (*PACKAGES, *DETECTRON2) if (version := _version(name))}
    yield Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def _incompatibilities(folder: Path) -> Iterator[Finding]:
    """Combinations that install without a word and fail later, in the training or in the uploader."""
    torch, numpy, mmengine, mmdet, mmcv = (
        _numbers(_version(name)) for name in ("torch", "numpy", "mmengine", "mmdet", "mmcv")
    )
    if torch and numpy and torch < (2, 3) and numpy >= (2,):
        yield Finding(
            "numpy",
            "error",
            f"torch {_version('torch')} was built for NumPy 1, installed is {_version('numpy')}",
            'pip install "numpy<2"',
        )
    if mmdet and mmcv and mmdet < (3, 4) and mmcv >= (2, 2):
        yield Finding(
            "mmcv",
            "error",
            f"mmdet {_version('mmdet')} refuses mmcv {_version('mmcv')} when it is imported",
            'pip install "mmcv<2.2"',
        )
    if torch and mmengine and torch >= (2, 6) and mmengine < (0, 11):
        yield Finding(
            "torch",
            "warning",
            f"torch {_version('torch')} loads weights only by default, which mmengine {_version('mmengine')} does not "
            "know: checkpoints with anything else in them are refused when a training resumes",
            'pip install "torch<2.6"',
        )
    if (mmengine or any(map(_version, DETECTRON2))) and not _importable("pkg_resources"):
        yield Finding(
            "setuptools",
            "warning",
            "there is no pkg_resources, which MMEngine and Detectron2's model zoo import",
            'pip install "setuptools<81"',
        )
    if _version("pandas") and (trouble := _import_trouble("import numpy, pandas")):
        yield Finding(
            "pandas",
            "error",
            f"pandas {_version('pandas')} does not import with numpy {_version('numpy')}: {trouble}",
            "pip install --upgrade pandas, or the NumPy that it was built for",
        )


def _import_trouble(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=START_S, check=False, errors="replace"
    )
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else f"exit status {done.returncode}") if done.returncode else ""


def _importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str | None) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(map(int, found[0].split("."))) if found else ()


# ---- backends ------------------------------------------------------------------------------------------------------


def _backends(folder: Path) -> Iterator[Finding]:
    """Each backend that is installed, first those that a training here would use."""
    chosen: list[str] = []
    options: Mapping[str, Any] = {}
    try:
        values = _settings.read_file(folder)
        options = values.get("options") or {}
        chosen = _settings.choose(None, values)
        for name in chosen:
            _plugins.load(name)
        with _quiet():
            RunSettings.resolve()
        yield Finding("tracker", "ok", f"a training here is recorded in {' and '.join(chosen) or 'nothing: it is off'}")
    except ConfigurationError as error:
        text, remedy = _parted(str(error))
        yield Finding("tracker", "error", text, remedy or "correct what it names")
    for name in [*chosen, *sorted(set(_plugins.installed()) - set(chosen))]:
        if name in _plugins.installed():
            yield from _backend(name, options, wanted=name in chosen)


def _backend(name: str, options: Mapping[str, Any], *, wanted: bool) -> Iterator[Finding]:
    try:
        _plugins.require(_plugins.load(name))
        with _quiet():
            checked, secrets = checked_backends([name], {name: options.get(name) or {}})
    except ConfigurationError as error:
        if wanted:
            return  # said already
        text, remedy = _parted(str(error))
        yield Finding(name, "ok", f"not asked for, and not usable: {text}", remedy)
        return
    place = ", ".join(f"{key} {value}" for key, value in checked[name].items() if isinstance(value, str))
    yield Finding(name, "ok", f"records in {place}" if place else "usable")
    diagnose = _plugins.load(name).diagnose
    if diagnose is None:
        return
    with _environment(secrets):
        for finding in diagnose(checked[name]):
            softened = finding.level == "error" and not wanted
            yield finding if not softened else Finding(finding.check, "warning", finding.message, finding.remedy)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Checking options says on standard error what a training should know; here it is a finding."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _environment(secrets: Mapping[str, str]) -> Iterator[None]:
    """Credentials out of a URI, where a lane would find them."""
    before = dict(os.environ)
    os.environ.update(secrets)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# ---- folders, uploader, runs ---------------------------------------------------------------------------------------


def _place(folder: Path) -> Iterator[Finding]:
    """Where run directories would be made."""
    try:
        parent = Path(_settings.read_file(folder).get("dir") or folder).absolute()
    except ConfigurationError:
        parent = folder.absolute()
    there = next(path for path in (parent / PARENT, parent, *parent.parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            yield Finding("run directory", "ok", f"{parent / PARENT} can be written")
    except OSError as error:
        text = f"{there} cannot be written: {error.strerror}"
        yield Finding("run directory", "error", text, "give start_run a `dir` that can be")
    free = shutil.disk_usage(there).free
    level: Level = "error" if free < NO_SPACE else "warning" if free < LITTLE_SPACE else "ok"
    remedy = "make room: records that find none are lost, and counted" if level != "ok" else ""
    yield Finding("disk", level, f"{decimal(free)} are free", remedy)
    if kind := file_system(there.resolve(), Path("/proc/mounts")):
        yield _file_system(kind)


def _file_system(kind: str) -> Finding:
    if NETWORK.fullmatch(kind):
        text = f"it is {kind}, a network file system: a call may wait for it, and its locks may not hold"
        return Finding("file system", "warning", text, "give start_run a `dir` on a disk of this machine")
    if kind in VOLATILE:
        text = f"it is {kind}, in memory: what is not delivered goes with the machine"
        return Finding("file system", "warning", text, "give start_run a `dir` on a disk")
    text = "overlay, which goes with its container: deliver before that" if kind == "overlay" else kind
    return Finding("file system", "ok", text)


def file_system(path: Path, mounts: Path) -> str:
    """The kind of file system that a path is on, as the kernel names it; "" where it does not tell (macOS)."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[1]))
        if path.is_relative_to(point) and len(point.parts) >= best:  # of two at one place, the later one counts
            best, kind = len(point.parts), fields[2]
    return kind


def _uploader(folder: Path) -> Iterator[Finding]:
    """Start a process as a training does, in a session of its own, and import the uploader in it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import unified_tracker._uploader"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=folder,
            timeout=START_S,
            start_new_session=True,
            check=False,
        )
        lines = done.stderr.strip().splitlines()
        trouble = "" if done.returncode == 0 else lines[-1] if lines else f"exit status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        trouble = str(error)
    if trouble:
        remedy = "let this Python start processes; until then `unified-tracker sync` delivers"
        yield Finding("uploader", "error", f"it cannot be started: {trouble}", remedy)
    else:
        yield Finding("uploader", "ok", "it can be started")


def _undelivered(folder: Path) -> Iterator[Finding]:
    reports = [delivery.report() for delivery in deliveries([folder / PARENT], everywhere=True)]
    waiting = [each for each in reports if each.outcome == Outcome.PENDING.name.lower()]
    ended = [each for each in waiting if each.training != "recording"]
    if going_on := len(waiting) - len(ended):
        yield Finding("runs", "ok", f"{going_on} being recorded")
    if ended:
        yield Finding("runs", "warning", f"{len(ended)} ended, and not delivered", "unified-tracker sync --all")
    refused = sum(lane.set_aside for each in reports for lane in each.backends)
    if refused:
        remedy = "unified-tracker runs --verbose says which and why"
        yield Finding("runs", "warning", f"{refused} records were refused", remedy)
    if not ended and not refused:
        yield Finding("runs", "ok", "everything that has ended is delivered")
    try:
        folder = _pending.folder()
    except (OSError, RuntimeError, KeyError) as error:
        yield Finding("runs", "warning", f"`sync --all` finds nothing: no home folder ({error})", "set XDG_STATE_HOME")


# ---- what is said --------------------------------------------------------------------------------------------------


def _parted(text: str) -> tuple[str, str]:
    """What is wrong, and the command in the text that mends it, if there is one."""
    found = re.search(r"pip install \S+", text)
    if found is None:
        return text, ""
    return text[: found.start()].rstrip(" :.(") if text.endswith(found[0]) else text, found[0]


def _clean(finding: Finding) -> Finding:
    """Without user and password of any URI, and without the value of any credential of this environment."""
    return Finding(finding.check, finding.level, _scrub(finding.message), _scrub(finding.remedy))


def _scrub(text: str) -> str:
    text = USERINFO.sub("", text)
    for name, value in os.environ.items():
        if len(value) > 3 and is_secret_name(name):
            text = text.replace(value, "***")
    return " ".join(mask_text(text).split())
