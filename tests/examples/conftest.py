"""What the tests of examples and plugins share: distributions in a folder, and programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


class Program(NamedTuple):
    """A finished process."""

    code: int
    out: str
    err: str


def run_program(
    *command: str | Path, cwd: Path, path: Path | None = None, limit_s: float = 240, **variables: str
) -> Program:
    """Run a Python program or `-c` text; `path` is a folder of distributions that it sees."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "WANDB_"))}
    environment |= {"PYTHONPATH": str(path) if path else "", "PYTHONWARNINGS": "ignore", **variables}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=limit_s
    )
    return Program(done.returncode, done.stdout, done.stderr)


def fake_distribution(folder: Path, name: str, backend: str, modules: Mapping[str, str], version: str = "1.2") -> None:
    """A distribution as pip leaves it in site-packages: modules, metadata, one entry point to the first module."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[unified_tracker]\n{backend} = {next(iter(modules))}\n")
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
