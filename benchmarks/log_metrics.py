"""What ten scalars cost the thread that trains: ours beside its floor and its peers, in one run.

    python benchmarks/log_metrics.py [--rounds 3] [--budget 4]

Every case runs in a process of its own, all of them once a round in a new random order; the table shows the median over
the rounds of each process's median and 99th percentile. Back to back: nothing else happens between the calls, which
is what leaves the least time to threads and helpers of the others.

`floor`: msgpack and one `write(2)`, nothing else. `ours_*`: `Run.log_metrics`, the uploader delivering meanwhile.
`wandb_offline`: `wandb.Run.log`. `mlflow_async`: `mlflow.log_metrics(synchronous=False)` to a server. `tensorboard`:
ten `add_scalar`. `blog_hook`: ten `mlflow.log_metric`, as the Detectron2 hook from the blog does, to a server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _processes import end_uploaders
from _servers import mlflow_server

KEYS = [f"train/{name}" for name in ("loss", "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")]
KEYS += ["train/lr", "train/grad_norm", "perf/iter_time_s", "perf/data_time_s"]
PEERS = ("wandb_offline", "mlflow_async", "tensorboard", "blog_hook")
CASES = ("floor", "ours_mlflow_server", "ours_both", "ours_server_gone", *PEERS)
STEPS, WARM_UP = 5000, 20

Log = Callable[[int, dict[str, float]], object]


def values(step: int) -> dict[str, float]:
    """Ten floats, all different, so that nothing can be left out."""
    return {key: 1.0 / (step + index + 1.5) for index, key in enumerate(KEYS)}


def floor(_uri: str) -> tuple[Log, Callable[[], object]]:
    import msgspec

    file = os.open("floor.bin", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    encode = msgspec.msgpack.Encoder().encode
    return (lambda step, row: os.write(file, encode((step, row)))), lambda: os.close(file)


def ours(tracker: list[str], uri: str) -> tuple[Log, Callable[[], object]]:
    import unified_tracker as ut

    options = {"mlflow": {"tracking_uri": uri}, "wandb": {"mode": "offline"}}
    run = ut.start_run(tracker, project="bench", options={name: options[name] for name in tracker})
    time.sleep(4)  # the uploader's start is not what is measured; it goes on delivering while we log
    return (lambda step, row: run.log_metrics(row, step)), lambda: run.finish(timeout_s=0)


def wandb_offline(_uri: str) -> tuple[Log, Callable[[], object]]:
    import wandb

    run = wandb.init(mode="offline", project="bench", settings=wandb.Settings(silent=True))
    return (lambda step, row: run.log(row, step=step)), run.finish


def mlflow_case(uri: str, *, hook: bool) -> tuple[Log, Callable[[], object]]:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("bench")
    mlflow.start_run()
    if hook:
        return (lambda step, row: [mlflow.log_metric(key, value, step) for key, value in row.items()]), mlflow.end_run
    return (lambda step, row: mlflow.log_metrics(row, step, synchronous=False)), lambda: None


def tensorboard(_uri: str) -> tuple[Log, Callable[[], object]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter("tb")
    return (lambda step, row: [writer.add_scalar(key, value, step) for key, value in row.items()]), writer.close


def one(case: str, uri: str, budget_s: float) -> None:
    """Run one case in this process and print its times as JSON."""
    make: dict[str, Callable[[], tuple[Log, Callable[[], object]]]] = {
        "floor": lambda: floor(uri),
        "ours_mlflow_server": lambda: ours(["mlflow"], uri),
        "ours_both": lambda: ours(["mlflow", "wandb"], uri),
        "ours_server_gone": lambda: ours(["mlflow"], "http://127.0.0.1:9"),
        "wandb_offline": lambda: wandb_offline(uri),
        "mlflow_async": lambda: mlflow_case(uri, hook=False),
        "tensorboard": lambda: tensorboard(uri),
        "blog_hook": lambda: mlflow_case(uri, hook=True),
    }
    log, close = make[case]()
    rows = [values(step) for step in range(STEPS)]
    for step in range(WARM_UP):
        log(step, rows[step])
    times: list[int] = []
    clock, began = time.perf_counter_ns, time.monotonic()
    for step in range(WARM_UP, STEPS):
        before = clock()
        log(step, rows[step])
        times.append(clock() - before)
        if time.monotonic() - began > budget_s:
            break
    times.sort()
    result = {"median_us": times[len(times) // 2] / 1e3, "p99_us": times[int(len(times) * 0.99)] / 1e3}
    print(json.dumps({"case": case, "calls": len(times), "max_us": times[-1] / 1e3, **result}), flush=True)
    if case == "mlflow_async":
        os._exit(0)  # its queue takes minutes; what is measured is over
    close()


def run_case(case: str, uri: str, budget_s: float) -> dict[str, float]:
    """Run one case in a process of its own; everything that it started is ended with it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
        environment |= {"WANDB_SILENT": "true", "WANDB_CACHE_DIR": folder, "WANDB_CONFIG_DIR": folder}
        environment |= {"WANDB_DATA_DIR": folder, "UNIFIED_TRACKER_LINGER_S": "5"}
        command = [sys.executable, __file__, "--case", case, "--uri", uri, "--budget", str(budget_s)]
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        end_uploaders(folder)
        lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(f"{case} failed:\n{process.stderr[-3000:]}")
        result: dict[str, float] = json.loads(lines[-1])
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of logging a case")
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--uri", default="")
    arguments = parser.parse_args()
    if arguments.case:
        one(arguments.case, arguments.uri, arguments.budget)
        return
    results: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, mlflow_server(Path(folder)) as uri:
        for number in range(arguments.rounds):
            for case in random.Random(number).sample(CASES, len(CASES)):
                results[case].append(run_case(case, uri, arguments.budget))
    report(results)


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """The table, and what it means for the goal."""
    middle = {
        case: {key: statistics.median(row[key] for row in rows) for key in ("median_us", "p99_us", "max_us", "calls")}
        for case, rows in results.items()
    }
    base = middle["floor"]["median_us"]
    print("| case | median µs | p99 µs | max µs | times the floor | calls |")
    print("|---|---:|---:|---:|---:|---:|")
    for case, row in sorted(middle.items(), key=lambda item: item[1]["median_us"]):
        print(
            f"| {case} | {row['median_us']:,.1f} | {row['p99_us']:,.1f} | {row['max_us']:,.0f} "
            f"| {row['median_us'] / base:,.1f} | {row['calls']:,.0f} |"
        )
    worst = max(middle[case]["median_us"] for case in middle if case.startswith("ours"))
    cheapest = min(PEERS, key=lambda case: middle[case]["median_us"])
    print(f"\ncheapest peer: {cheapest}, {middle[cheapest]['median_us'] / worst:.0f} times our dearest case")


if __name__ == "__main__":
    main()
