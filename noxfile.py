"""Everything that is checked, and the demo: `nox` runs the checks, `nox -s demo` the demo; each sets up what it needs.

Framework sessions share one reference environment, `.nox/reference`: both frameworks, both backends, this package in
editable mode. It is built once; the first time takes 10 to 20 minutes, since MMCV is compiled from source.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2024.3.2"
nox.options.sessions = ["lint", "types", "tests", "frameworks"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
REFERENCE = ROOT / ".nox" / "reference"
WINDOWS = os.name == "nt"
PYTHON_VARIABLE = "UNIFIED_TRACKER_REFERENCE_PYTHON"

# Python of the reference environment to the PyTorch that goes with it, best first. 3.11 is what CI runs; for the others
# these are the versions that have wheels. MMCV 2.1.0 is the newest that
# MMDetection 3.3.0 takes; PyTorch 2.6 loads checkpoints in a way that MMEngine 0.10 does not know, and no NumPy 1 has
# wheels for Python 3.13.
PYTORCH = {
    "3.11": ("torch==2.1.2", "torchvision==0.16.2"),
    "3.10": ("torch==2.1.2", "torchvision==0.16.2"),
    "3.12": ("torch==2.2.2", "torchvision==0.17.2"),
}
BUILD_TOOLS = ("setuptools<81", "wheel", "ninja", "numpy<2")  # setuptools 81 has no pkg_resources, which MMCV needs
MMCV = "mmcv==2.1.0"
FRAMEWORKS = (
    "mmengine==0.10.7",
    "mmdet==3.3.0",
    *("fvcore", "iopath", "omegaconf", "hydra-core", "pycocotools", "yacs", "tabulate", "cloudpickle", "termcolor"),
    *("tensorboard", "matplotlib", "black"),
)
DETECTRON2 = "sal-detectron2==0.7.2"  # a redistribution: the index has no official Detectron2
BACKENDS = ("mlflow==3.17.*", "wandb==0.31.*")
OLD_SERVER = ("mlflow==2.16.2", "sqlalchemy<2.1", "setuptools<81")  # what it needed when it was new
TEST_TOOLS = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100")
BROWSER_TOOLS = ("playwright>=1.45", "html5lib>=1.1")  # playwright's driver only; the browser is the system's
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install("ruff==0.17.*")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict. The frameworks are not needed: they have no types."""
    session.install("-e", ".[all]", "mypy==2.4.*", "types-PyYAML", "nox", *TEST_TOOLS)
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Unit tests of the built package, where neither a framework nor a backend's client is installed."""
    session.install(".", *TEST_TOOLS)
    session.run("python", "-c", "import unified_tracker, unified_tracker.cli")
    session.run("pytest", *(session.posargs or ["tests/unit"]))


@nox.session(venv_backend="none")
def frameworks(session: nox.Session) -> None:
    """Backends, adapters and examples: with the real frameworks and the real clients."""
    python = reference(session)
    folders = [
        name
        for name in ("backends", "detectron2", "mmdet", "examples", "faults", "browser")
        if (ROOT / "tests" / name).is_dir()
    ]
    if not session.posargs or any("browser" in each for each in session.posargs):
        _browser(session)
    session.run(python, "-m", "pytest", *(session.posargs or [f"tests/{name}" for name in folders]), external=True)


@nox.session
def old_server(session: nox.Session) -> None:
    """The fault tests with today's client and the oldest MLflow server that is supported."""
    session.install(*OLD_SERVER)
    python = reference(session)
    server = {"FAULTS_MLFLOW_PYTHON": str(Path(session.bin) / "python")}
    session.run(python, "-m", "pytest", *(session.posargs or ["tests/faults"]), env=server, external=True)


@nox.session(venv_backend="none")
def faults(session: nox.Session) -> None:
    """All fault tests with many seeds and kills: an hour and a half; writes docs/faults.md. Arguments go to pytest."""
    python = reference(session)
    counts = {"SEEDS": "10", "ROWS": "30000", "KILLS": "30", "ROUNDS": "20", "OUTAGE_S": "600", "SPARSE_MIB": "1024"}
    many = {**{f"FAULTS_{name}": count for name, count in counts.items()}, **os.environ}
    many["FAULTS_TABLE"] = str(ROOT / "docs" / "faults.md")
    everything = session.posargs or [
        *("tests/faults", "tests/backends/test_wandb_online.py", "tests/backends/test_wandb_process.py"),
        *("tests/unit/test_journal.py", "tests/unit/test_lane.py", "tests/unit/test_never_in_the_way.py"),
        *("tests/unit/test_staging.py", "tests/unit/test_guard.py"),
    ]
    session.run(
        *(python, "-m", "pytest", "--timeout=3600", "-p", "tests.faults.table"), *everything, env=many, external=True
    )


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """A small training, tracked. Arguments: nox -s demo -- --framework mmdetection --tracker both."""
    python = reference(session)
    session.run(python, "-m", "unified_tracker.cli", "demo", *session.posargs, external=True)


@nox.session(venv_backend="none")
def benchmarks(session: nox.Session) -> None:
    """All programs in benchmarks/, or the one that is named: nox -s benchmarks -- benchmarks/log_metrics.py."""
    python = reference(session)
    for program in session.posargs or [str(path) for path in sorted((ROOT / "benchmarks").glob("[!_]*.py"))]:
        session.run(python, program, external=True)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the journal's reader, on Linux. Seconds as argument, 60 without: nox -s fuzz -- 300."""
    session.install("atheris>=3", ".")
    seconds = session.posargs[0] if session.posargs else "60"
    findings = f"-artifact_prefix={session.create_tmp()}/"  # a finding runs again as the program's only argument
    session.run("python", "tests/fuzz/fuzz_journal.py", findings, f"-max_total_time={seconds}", "-print_final_stats=1")


def _browser(session: nox.Session) -> None:
    """Install Chromium if there is no browser for the tests of the page, where that is possible without asking."""
    named = os.environ.get("UNIFIED_TRACKER_BROWSER")
    if named or any(map(shutil.which, BROWSERS)):
        return
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        session.error(
            "tests/browser needs a browser: apt-get install chromium, or install Google Chrome; then nox again"
        )
    session.run("apt-get", "update", "-qq", external=True)
    session.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", external=True)


# ---- the reference environment -------------------------------------------------------------------------------------


def reference(session: nox.Session) -> str:
    """Build the reference environment, or what has changed of it; returns its Python.

    A stamp is written when a stage is complete: an interrupted build starts clean, a changed list of requirements
    builds anew, a changed `pyproject.toml` only installs this package again.
    """
    chosen = os.environ.get(PYTHON_VARIABLE)
    python = REFERENCE / ("Scripts/python.exe" if WINDOWS else "bin/python")
    base = REFERENCE / "frameworks.stamp"
    version = base.read_text(encoding="utf-8").partition(" ")[0] if base.exists() else ""
    if version not in PYTORCH or base.read_text(encoding="utf-8") != _base_stamp(version):
        version, interpreter = _interpreter(session, chosen)
        _build(session, str(python), version, interpreter)
        base.write_text(_base_stamp(version), encoding="utf-8")
    own = REFERENCE / "package.stamp"
    digest = _digest(
        str(ROOT), (ROOT / "pyproject.toml").read_text(encoding="utf-8"), *BACKENDS, *TEST_TOOLS, *BROWSER_TOOLS
    )
    if not own.exists() or own.read_text(encoding="utf-8") != digest:
        own.unlink(missing_ok=True)
        _pip(session, str(python), "numpy<2", "setuptools<81", *BACKENDS, *TEST_TOOLS, *BROWSER_TOOLS, "-e", ".")
        own.write_text(digest, encoding="utf-8")
    return str(python)


def _build(session: nox.Session, python: str, version: str, interpreter: str) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        session.error("a C++ compiler is needed to build MMCV: apt-get install g++, then run nox again")
    session.log(f"building the reference environment in {REFERENCE} with Python {version} ({interpreter})")
    session.log("once: 3 to 8 minutes of downloads (PyTorch), then MMCV is compiled: 6 to 12 minutes on two cores")
    shutil.rmtree(REFERENCE, ignore_errors=True)
    session.run(sys.executable, "-m", "virtualenv", "-q", "-p", interpreter, str(REFERENCE), external=True)
    _pip(session, python, "--upgrade", "pip")
    _pip(session, python, *BUILD_TOOLS, *PYTORCH[version])
    _pip(session, python, "mmengine==0.10.7", "numpy<2")
    _compile_mmcv(session, python)
    _pip(session, python, "numpy<2", "setuptools<81", *FRAMEWORKS)
    # The wheel is tagged for Python 3.10, but its one optional binary aside it is pure Python.
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    tags = ("--python-version", "3.10", "--implementation", "cp", "--abi", "none", "--platform", "any")
    _pip(session, python, "--no-deps", "--only-binary=:all:", *tags, "--target", purelib.strip(), DETECTRON2)


def _compile_mmcv(session: nox.Session, python: str) -> None:
    """Install MMCV from its source distribution, and say how far the compiler is. Pip keeps the wheel for next time."""
    log = REFERENCE / "mmcv-build.log"
    session.log(f"{MMCV}: compiling (6 to 12 minutes on two cores; seconds if pip has kept the wheel); log: {log}")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")]),  # ninja
        "MMCV_WITH_OPS": "1",
        "FORCE_CUDA": "0",
        "MAX_JOBS": os.environ.get("MAX_JOBS", str(min(os.cpu_count() or 2, 8))),  # a job needs up to 1.5 GB of memory
        "PYTHONUNBUFFERED": "1",
    }
    command = [python, "-m", "pip", "install", "-v", "--no-build-isolation", MMCV, "numpy<2"]
    started = shown = time.monotonic()
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            file.write(line)
            step = re.search(r"^\s*\[(\d+)/(\d+)\]", line)
            if step and time.monotonic() - shown > 10:
                shown = time.monotonic()
                session.log(f"{MMCV}: {step[1]} of {step[2]} files compiled, {shown - started:.0f} s")
    if pip.returncode:
        sys.stderr.write("\n".join(log.read_text(encoding="utf-8").splitlines()[-40:]) + "\n")
        session.error(f"{MMCV} could not be compiled: see {log}")
    session.log(f"{MMCV}: installed after {time.monotonic() - started:.0f} s")


def _pip(session: nox.Session, python: str, *arguments: str) -> None:
    session.run(python, "-m", "pip", "install", "--disable-pip-version-check", *arguments, external=True)


def _base_stamp(version: str) -> str:
    return f"{version} {_digest(*PYTORCH[version], *BUILD_TOOLS, MMCV, *FRAMEWORKS, DETECTRON2)}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _interpreter(session: nox.Session, chosen: str | None) -> tuple[str, str]:  # noqa: RET503 -- `error` ends it
    """Version and path of the best Python for the frameworks; ends the session with what to do if there is none."""
    headerless: list[str] = []
    for version in PYTORCH:
        for candidate in [chosen] if chosen else _candidates(version):
            found = _probe(candidate)
            if found == (version, True):
                return version, candidate
            if found == (version, False):
                headerless.append(candidate)
    hint = f" ({', '.join(headerless)}: no C headers, apt-get install python3-dev)" if headerless else ""
    session.error(
        f"the frameworks need Python {', '.join(PYTORCH)} with its C headers, best 3.11{hint}: "
        f"apt-get install python3.11-dev, or pyenv install 3.11, or {PYTHON_VARIABLE}=/path/to/python; then nox again"
    )


def _candidates(version: str) -> Iterator[str]:
    """Places where a Python of a version may be; they need not exist. The running one first."""
    yield sys.executable
    names = (f"python{version}.exe", "python.exe") if WINDOWS else (f"python{version}", "python3")
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield from (str(Path(folder) / name) for name in names)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from (str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True))
    yield from (str(path) for path in Path.home().glob(f".local/share/uv/python/cpython-{version}*/bin/python"))
    if WINDOWS and shutil.which("py"):
        asked = subprocess.run(
            ["py", f"-{version}", "-c", "import sys; print(sys.executable)"], capture_output=True, text=True
        )
        yield asked.stdout.strip()


def _probe(candidate: str) -> tuple[str, bool] | None:
    """Version of an interpreter, and whether C extensions can be compiled for it; None if it does not run."""
    code = (
        "import os, sys, sysconfig; "
        "print('%d.%d' % sys.version_info[:2], os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')))"
    )
    try:
        asked = subprocess.run([candidate, "-c", code], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    version, _, headers = asked.stdout.strip().partition(" ")
    return (version, headers == "True") if asked.returncode == 0 else None
