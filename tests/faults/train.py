"""A training that is killed: logs without end and publishes after each call that it has returned.

Arguments: folder, tracking URI, project; "workers": two forked children that live on. Its counter, `returned` in the
folder, is one number in shared memory.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from pathlib import Path

import unified_tracker as ut

folder, uri, project = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
path = folder / "returned"
path.write_bytes(bytes(8))
with path.open("r+b") as file:
    returned = mmap.mmap(file.fileno(), 8)
run = ut.start_run("mlflow", project=project, dir=folder, options={"mlflow": {"tracking_uri": uri}})
if "workers" in sys.argv:
    workers = []
    for _ in range(2):
        workers.append(os.fork())
        if workers[-1] == 0:
            time.sleep(600)
            os._exit(0)
    (folder / "workers").write_text(" ".join(map(str, workers)))
for count in range(1, 1_000_000):
    value = float("nan") if count % 10 == 0 else 1.0 / count
    run.log_metrics({"loss": value, "count": float(count)}, step=count)
    returned[:] = struct.pack("<q", count)
    if count % 4 == 0:
        time.sleep(0.01)
