"""What tracking does to a training loop of one-millisecond steps, whatever state the server is in.

    python benchmarks/step_time.py [--rounds 5] [--seconds 6]

A step is a millisecond of arithmetic and one `Run.log_metrics` of three scalars. Each state runs in a process of its
own, all of them once a round in a new random order; a round's numbers are the 50th and 99th percentile of the whole
step and of the call alone; the table shows medians over the rounds, and the slowest call of all.

`off`: `tracker="off"`. `healthy`: a real `mlflow server`, on this machine, so it competes for its cores. `refused`:
nobody listens. `black hole`: the server accepts and never answers. `stopped`: the uploader and its lane have got
SIGSTOP. `backlog`: the uploader drains 200,000 records from before.

Goals: the step's p99 at most 1.2 of `off`, its mean 3 % more at most; the call's p50 and p99 at most 1.5 of `refused`
and 20 µs; no call over 50 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _processes import end_uploaders, tree, uploaders
from _servers import black_hole, free_port, mlflow_server

STATES = ("off", "healthy", "refused", "black hole", "stopped", "backlog")
BACKLOG = 200_000
STEP_GOAL, MEAN_GOAL, CALL_GOAL, CALL_MORE_US, CALL_MAX_MS = 1.2, 1.03, 1.5, 20, 50


def work(amount: int) -> float:
    """What a training does between two calls: nothing but computing."""
    result = 0.0
    for number in range(amount):
        result += number * 0.5
    return result


def calibrate() -> int:
    """How much work takes a millisecond here, at best."""
    amount, best = 20_000, float("inf")
    for _ in range(200):
        before = time.perf_counter()
        work(amount)
        best = min(best, time.perf_counter() - before)
    return int(amount * 1e-3 / best)


def wait_for(path: Path) -> None:
    """Wait until a file is there."""
    while not path.exists():
        time.sleep(0.1)


def one(state: str, uri: str, seconds: float, amount: int) -> None:
    """Run the loop in this process and print its times as JSON."""
    import unified_tracker as ut

    tracker = "off" if state == "off" else "mlflow"
    run = ut.start_run(tracker, project="bench", options={} if state == "off" else {"mlflow": {"tracking_uri": uri}})
    rows = [
        {key: 1.0 / (step + index + 1.5) for index, key in enumerate(("loss", "lr", "time"))} for step in range(500)
    ]
    if state == "backlog":
        for step in range(BACKLOG):
            run.log_metrics(rows[step % 500], step)
    if run.dir is not None:  # the uploader imports the client for seconds; its start is not what is measured
        wait_for(run.dir / "lanes" / "mlflow.json")
    time.sleep(2)
    stopped: list[int] = []
    if state == "stopped":
        stopped = [pid for root in uploaders(os.getcwd()) for pid in tree(root)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
    steps: list[int] = []
    calls: list[int] = []
    clock, step, over = time.perf_counter_ns, BACKLOG, time.perf_counter() + seconds
    while time.perf_counter() < over:
        began = clock()
        work(amount)
        before = clock()
        run.log_metrics(rows[step % 500], step)
        ended = clock()
        steps.append(ended - began)
        calls.append(ended - before)
        step += 1
    for pid in stopped:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
    result = {"steps": len(steps), "mean": statistics.mean(steps) / 1e3, "refused": run.refused}
    for name, times in (("step", steps), ("call", calls)):
        times.sort()
        result |= {f"{name}_p50": times[len(times) // 2] / 1e3, f"{name}_p99": times[int(len(times) * 0.99)] / 1e3}
    print(json.dumps({**result, "call_max": calls[-1] / 1e3, "stopped": len(stopped)}), flush=True)
    os._exit(0)  # what is measured is over


def run_state(state: str, uri: str, seconds: float, amount: int) -> dict[str, float]:
    """Run one state in a process of its own; everything that it started is ended with it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "UNIFIED_TRACKER_LINGER_S": "5"}
        command = [sys.executable, __file__, "--state", state, "--uri", uri]
        command += ["--seconds", str(seconds), "--amount", str(amount)]
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        end_uploaders(folder)
        lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(f"{state} failed:\n{process.stderr[-3000:]}")
        result: dict[str, float] = json.loads(lines[-1])
        if result["refused"] or (state == "stopped" and result["stopped"] < 2):
            raise RuntimeError(f"{state}: {result}\n{process.stderr[-3000:]}")
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of steps in each state and round")
    parser.add_argument("--state", choices=STATES, help=argparse.SUPPRESS)
    parser.add_argument("--uri", default="", help=argparse.SUPPRESS)
    parser.add_argument("--amount", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.state:
        one(arguments.state, arguments.uri, arguments.seconds, arguments.amount)
        return
    results: dict[str, list[dict[str, float]]] = {state: [] for state in STATES}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        mlflow_server(Path(folder)) as server,
        black_hole() as hole,
    ):
        amount = calibrate()
        nobody = f"http://127.0.0.1:{free_port()}"
        uris = {"refused": nobody, "black hole": hole}
        for number in range(arguments.rounds):
            for state in random.Random(number).sample(STATES, len(STATES)):
                uri = uris.get(state, server)
                results[state].append(run_state(state, uri, arguments.seconds, amount))
    report(results)


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """The table, and what it means for the goals."""
    keys = ("step_p50", "step_p99", "mean", "call_p50", "call_p99")
    middle = {
        state: {key: statistics.median(row[key] for row in rows) for key in keys} for state, rows in results.items()
    }
    print("| state | step p50 µs | step p99 µs | mean µs | call p50 µs | call p99 µs | slowest call ms | steps |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for state, rows in results.items():
        cells = " | ".join(f"{middle[state][key]:,.1f}" for key in keys)
        slowest = max(row["call_max"] for row in rows) / 1e3
        print(f"| {state} | {cells} | {slowest:.2f} | {sum(row['steps'] for row in rows):,.0f} |")
    off, base, missed = middle["off"], middle["refused"], []
    for state, row in middle.items():
        if state == "off":
            continue
        if row["step_p99"] > STEP_GOAL * off["step_p99"]:
            missed.append(f"{state}: step p99 {row['step_p99'] / off['step_p99']:.2f} of off")
        if row["mean"] > MEAN_GOAL * off["mean"]:
            missed.append(f"{state}: mean {row['mean'] / off['mean']:.2f} of off")
        limits = {key: CALL_GOAL * base[key] + CALL_MORE_US for key in ("call_p50", "call_p99")}
        missed += [f"{state}: {key} {row[key]:.0f} µs" for key, limit in limits.items() if row[key] > limit]
        if max(one["call_max"] for one in results[state]) > CALL_MAX_MS * 1e3:
            missed.append(f"{state}: a call over {CALL_MAX_MS} ms")
    print(f"\ngoals missed: {'; '.join(missed)}" if missed else "\ngoals met in every state")


if __name__ == "__main__":
    main()
