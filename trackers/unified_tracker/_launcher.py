"""Starting the uploader: a process in a session of its own, which outlives the training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

HANDOVER_S: Final = "10"  # the uploader of the attempt before may be about to end
QUIET: Final = {
    "CUDA_VISIBLE_DEVICES": "",  # a backend's client must not take memory on the training's device
    "OMP_NUM_THREADS": "1",
}
DISTRIBUTED: Final = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})


class UploaderProcess:
    """The uploader of one run directory, as its starter sees it."""

    def __init__(self, run_dir: Path, log: Path, cwd: Path, secrets: dict[str, str]) -> None:
        """Remember how to start it.

        Args:
            run_dir: The run directory that it delivers.
            log: Where its standard output and error go.
            cwd: Its working folder: that of the training, since backends' relative defaults are meant from there.
            secrets: Credentials taken out of URIs; handed over in its environment, where nobody else can read them.
        """
        self._run_dir, self._log, self._cwd = run_dir, log, cwd
        self.secrets = secrets
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (about a millisecond). Starting a second one is harmless: it finds the lock taken and ends.

        Raises:
            OSError: The process cannot be made.
        """
        self.forget()
        environment = {key: value for key, value in os.environ.items() if key not in DISTRIBUTED}
        environment.update(QUIET, **self.secrets)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "unified_tracker._uploader", str(self._run_dir), HANDOVER_S],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env=environment,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """True if it was started and has ended. Does not wait."""
        return self._process is not None and self._process.poll() is not None

    def forget(self) -> None:
        """Let go of it: it outlives this process by design, so Python need not warn that it is still running."""
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0
        self._process = None
