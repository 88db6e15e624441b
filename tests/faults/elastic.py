"""A training of several ranks, for `torchrun`: in the first attempt one rank is killed, the next attempt resumes.

Arguments: folder, tracking URI, project, what is killed ("0" or "1"). All ranks meet at every step.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

import unified_tracker as ut

folder, uri, project, victim = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
known = folder / "run id"  # what a framework keeps in its checkpoint
dist.init_process_group("gloo")
run = ut.start_run(
    "mlflow",
    project=project,
    dir=folder,
    id=known.read_text() if known.exists() else None,
    options={"mlflow": {"tracking_uri": uri}},
)
if rank == 0:
    known.write_text(run.id)
for step in range(10 * attempt + 1, 31):
    dist.barrier()
    run.log_metrics({"loss": 1.0 / step, "attempt": float(attempt)}, step=step)
    if attempt == 0 and step == 20 and rank == int(victim):
        os.kill(os.getpid(), signal.SIGKILL)
run.finish()
dist.destroy_process_group()
