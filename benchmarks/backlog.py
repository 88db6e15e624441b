"""How fast a backlog is drained, beside the raw client on the same server, and what memory that takes.

    python benchmarks/backlog.py [--records 1000000]

Records of three metrics are logged through `Run` while the server is down; then the server starts (a real `mlflow
server`, its defaults, SQLite) and `unified-tracker sync` delivers them. The same values go to the same server through
`MlflowClient.log_batch` with 1000 metrics a call: one half before ours and one half behind it, since the server gets
slower with what it holds. Rates count from the first value to the last: starting Python and importing MLflow stand by
themselves. At the end the rows in the server's database are counted. Memory is the sum of the resident sizes of the
uploader's processes, sampled ten times a second; pages that they share count twice. The journal's scan is the reader
alone, in a process of its own.

A server on SQLite takes some 2,600 metrics a second: a million records are 40 minutes in all. Goals: 0.8 of the raw
client, 300 MiB, 300,000 records a second scanned.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _processes import MemoryWatch, end_uploaders
from _servers import free_port, mlflow_server

KEYS = ("train/loss", "train/lr", "perf/iter_time_s")
A_CALL = 1000
GOAL_RATIO, GOAL_MIB, GOAL_SCAN = 0.8, 300, 300_000


def values(step: int) -> dict[str, float]:
    return {key: 1.0 / (step + index + 1.5) for index, key in enumerate(KEYS)}


def write(uri: str, folder: str, records: int) -> dict[str, Any]:
    """Log everything, with no server there."""
    import unified_tracker as ut

    run = ut.start_run("mlflow", project="bench", dir=folder, options={"mlflow": {"tracking_uri": uri}})
    rows = [values(step) for step in range(records)]
    before = time.perf_counter()
    for step, row in enumerate(rows):
        run.log_metrics(row, step)
    took = time.perf_counter() - before
    run.finish(timeout_s=0)
    return {"seconds": took, "id": run.id}


def scan(folder: str) -> dict[str, Any]:
    """Read the journal and do nothing with it."""
    from unified_tracker._journal import JournalReader

    (journal,) = Path(folder).glob("unified-tracker/*/journal")
    best = 0.0
    for _ in range(3):
        reader, count, before = JournalReader(journal), 0, time.perf_counter()
        while entries := reader.read(final=True):
            count += len(entries)
        best = max(best, count / (time.perf_counter() - before))
    return {"records": count, "rate": best}


def raw(uri: str, first: int, last: int) -> dict[str, Any]:
    """Send the values of some steps by the raw client, as fast as it goes."""
    import mlflow
    from mlflow.entities import Metric

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("raw")
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("raw"))
    now = int(time.time() * 1000)
    metrics = [
        Metric(key, value, now + step, step) for step in range(first, last) for key, value in values(step).items()
    ]
    before = time.perf_counter()
    for start in range(0, len(metrics), A_CALL):
        client.log_batch(run.info.run_id, metrics=metrics[start : start + A_CALL])
    return {"seconds": time.perf_counter() - before, "metrics": len(metrics)}


def child(what: str, *arguments: object) -> dict[str, Any]:
    """Run one of the functions above in a process of its own."""
    command = [sys.executable, __file__, "--child", what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def environment() -> dict[str, str]:
    return {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "UNIFIED_TRACKER_LINGER_S": "60"}


def drain(folder: Path, run_id: str) -> dict[str, Any]:
    """Run `unified-tracker sync`; when the first and the last records were held is read from the lane's state."""
    state = folder / "unified-tracker" / run_id / "lanes" / "mlflow.json"
    state.unlink(missing_ok=True)
    began = time.perf_counter()
    first = 0.0
    process = subprocess.Popen([sys.executable, "-m", "unified_tracker.cli", "sync", str(folder)], env=environment())
    watch = MemoryWatch(process.pid)
    while process.poll() is None:
        if not first and state.exists() and json.loads(state.read_bytes())["address"]:
            first = time.perf_counter()
        time.sleep(0.05)
    ended = time.perf_counter()
    watch.end()
    if process.returncode:
        raise RuntimeError(f"sync ended with {process.returncode}")
    return {"start": first - began, "seconds": ended - first, "peaks": watch.peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, *given = arguments.child
        functions = {
            "write": lambda uri, folder, records: write(uri, folder, int(records)),
            "scan": scan,
            "raw": lambda uri, first, last: raw(uri, int(first), int(last)),
        }
        print(json.dumps(functions[what](*given)), flush=True)
        return
    records = arguments.records
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        runs = folder / "runs"
        written = child("write", f"http://127.0.0.1:{port}", runs, records)
        end_uploaders(runs)
        scanned = child("scan", runs)
        with mlflow_server(folder, port) as uri:
            before = child("raw", uri, 0, records // 2)
            drained = drain(runs, written["id"])
            behind = child("raw", uri, records // 2, records)
        with sqlite3.connect(folder / "server.db") as database:
            query = "select count(*) from metrics where run_uuid = (select run_uuid from tags where value = ?)"
            (held,) = database.execute(query, (written["id"],)).fetchone()
    if held != records * len(KEYS):
        raise RuntimeError(f"the server holds {held} of {records * len(KEYS)} rows")
    report(records, written, scanned, drained, before, behind)


def report(
    records: int,
    written: dict[str, Any],
    scanned: dict[str, Any],
    drained: dict[str, Any],
    before: dict[str, Any],
    behind: dict[str, Any],
) -> None:
    """The tables, and what they mean for the goals."""
    print("| | seconds | records/s | metrics/s |")
    print("|---|---:|---:|---:|")
    for label, seconds, count in (
        ("`Run.log_metrics`, no server", written["seconds"], records),
        ("journal scanned (best of 3)", records / scanned["rate"], records),
        ("raw client, before", before["seconds"], before["metrics"] / len(KEYS)),
        ("`unified-tracker sync`", drained["seconds"], records),
        ("raw client, behind", behind["seconds"], behind["metrics"] / len(KEYS)),
    ):
        print(f"| {label} | {seconds:,.1f} | {count / seconds:,.0f} | {count * len(KEYS) / seconds:,.0f} |")
    ours = records / drained["seconds"]
    raw_rate = records / (before["seconds"] + behind["seconds"])
    peaks = drained["peaks"]
    uploader = sum(size for kind, size in peaks.items() if kind != "cli")
    memory = ", ".join(f"{kind} {size:.0f}" for kind, size in sorted(peaks.items()))
    print(f"\nstart of sync until the run is open: {drained['start']:.1f} s; peak memory in MiB: {memory}")
    faster = max(half["metrics"] / len(KEYS) / half["seconds"] for half in (before, behind))
    ratio = ours / raw_rate
    met = ratio >= GOAL_RATIO and uploader <= GOAL_MIB and scanned["rate"] >= GOAL_SCAN
    print(
        f"goal {'met' if met else 'missed'}: {ratio:.2f} of the raw client, {ours / faster:.2f} of its faster half "
        f"(goal {GOAL_RATIO}), uploader and lane "
        f"{uploader:.0f} MiB (goal {GOAL_MIB}), scan {scanned['rate']:,.0f} records/s (goal {GOAL_SCAN:,})"
    )


if __name__ == "__main__":
    main()
