"""What a run was made with: versions, devices, git commit, processes. Read without importing a framework."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from unified_tracker._mask import mask_command, mask_text

GIT_S: Final = 1.0
GIT_CHANGES_S: Final = 0.1
PACKAGES: Final = ("torch", "torchvision", "detectron2", "mmdet", "mmengine", "mmcv", "numpy", "unified-tracker")


def process_rank() -> int:
    """Rank of this process as launchers tell it (`$RANK`, `$SLURM_PROCID`); 0 when nobody does."""
    for variable in ("RANK", "SLURM_PROCID"):
        value = os.environ.get(variable, "")
        if value.isdigit():
            return int(value)
    return 0


class Environment(msgspec.Struct, frozen=True):
    """Facts about this process and machine.

    Attributes:
        packages: Version of each framework and library that is installed or already imported.
        cuda: CUDA version that torch was built for, and the devices; empty without torch or CUDA.
    """

    python: str
    packages: dict[str, str]
    cuda: dict[str, Any]
    git: dict[str, str]
    host: str
    user: str
    command: str
    world_size: int

    @classmethod
    def collect(cls) -> Environment:
        """Look. Takes some milliseconds (one `git` call); never fails."""
        world = os.environ.get("WORLD_SIZE", "1")
        return cls(
            python=platform.python_version(),
            packages=_versions(),
            cuda=_cuda(),
            git=_git(Path.cwd()),
            host=platform.node(),
            user=_user(),
            command=" ".join(mask_command(sys.argv)),
            world_size=int(world) if world.isdigit() else 1,
        )

    def params(self) -> dict[str, Any]:
        """As run parameters, below `env`."""
        facts = {
            "python": self.python,
            "packages": self.packages,
            "cuda": self.cuda,
            "git": self.git,
            "host": self.host,
            "command": self.command,
            "world_size": self.world_size,
        }
        return {"env": {key: value for key, value in facts.items() if value not in ({}, "")}}

    def tags(self) -> dict[str, str]:
        """As run tags; the names that MLflow's own pages show are used where there are such."""
        tags = {
            "mlflow.user": self.user,
            "mlflow.source.name": self.command.split(" ")[0],
            "mlflow.source.type": "LOCAL",
        }
        if "commit" in self.git:
            tags["mlflow.source.git.commit"] = self.git["commit"]
        return tags


def _versions() -> dict[str, str]:
    from importlib import metadata  # 20 ms: not at import

    found = {}
    for name in PACKAGES:
        module = sys.modules.get(name)
        version = getattr(module, "__version__", None)
        if version is None:
            try:
                version = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        found[name] = str(version)
    return found


def _cuda() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    facts: dict[str, Any] = {"version": str(torch.version.cuda)} if torch.version.cuda else {}
    if torch.cuda.is_available():
        facts["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def _git(folder: Path) -> dict[str, str]:
    """Commit, branch, remote, and whether files differ from the commit.

    Three processes side by side. The first two take milliseconds in a repository of any size; looking for changes takes
    as long as there are files, and is given up after `GIT_CHANGES_S`: `dirty` is then left out.
    """

    def ask(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["git", "--no-optional-locks", *arguments],  # noqa: S607 -- the user's own git, wherever it is
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    asked: list[subprocess.Popen[str]] = []
    try:
        asked.append(head := ask("rev-parse", "HEAD", "--abbrev-ref", "HEAD"))
        asked.append(config := ask("config", "--get", "remote.origin.url"))
        asked.append(changes := ask("diff", "--quiet", "--no-ext-diff", "HEAD"))
        lines = head.communicate(timeout=GIT_S)[0].split()
        if head.returncode or len(lines) != 2:
            return {}
        facts = {"commit": lines[0], "branch": lines[1]}
        if remote := config.communicate(timeout=GIT_S)[0].strip():
            facts["remote"] = mask_text(remote)
        with contextlib.suppress(subprocess.TimeoutExpired):
            facts["dirty"] = str(changes.wait(GIT_CHANGES_S) == 1).lower()
        return facts
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    finally:
        for process in asked:
            process.kill()
            process.communicate()


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid()) if hasattr(os, "getuid") else ""
