"""How long logging a checkpoint blocks the training, beside its peers, in one run.

    python benchmarks/checkpoint.py [--mib 256] [--rounds 5]

One file of random bytes, as `torch.save` wrote it; each case in a process of its own, all of them once a round in a new
random order; the table shows medians over the rounds and the slowest. Before each case, what was dirty is on the disk,
the file is in the page cache, as it is right after it has been saved, and there is free memory that was used before: on
a virtual machine the first use of a page costs more than writing to it.

`torch.save`: the same tensor, to the same disk. `shutil.copyfile`. `mlflow.log_artifact`: to a real `mlflow server`
that keeps artifacts. `wandb.Artifact.add_file`: offline run, default policy; hashing and copying, `log_artifact` behind
it is not counted. `once`: `Run.log_checkpoint` of a name that is written once, `model_0000099.pth`. `at risk`: of a
name that frameworks write over in place, `model_best.pth`. The uploader delivers to the same server meanwhile.

Goal: under a tenth of each peer.

What that leaves to the next save: `save again` is `torch.save` over a file that was logged before, when its copy is
long made; `save again in the copy`, in the middle of the copy; `save again at once`, as an adapter does it right after
logging, which makes the copy itself. Compare with `torch.save`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _processes import end_uploaders
from _servers import mlflow_server

PEERS = ("torch.save", "shutil.copyfile", "mlflow.log_artifact", "wandb.Artifact.add_file")
OURS = {"once": "model_0000099.pth", "at risk": "model_best.pth"}
AGAIN = {"save again": 5.0, "save again in the copy": 0.07, "save again at once": 0.0}  # seconds after it was logged
GOAL = 10


def prepare(case: str, source: Path, uri: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """The call that is measured, and what ends it; everything before it is done here."""
    if case in OURS or case in AGAIN:
        import torch

        import unified_tracker as ut

        run = ut.start_run("mlflow", project="bench", options={"mlflow": {"tracking_uri": uri}})
        time.sleep(4)  # the uploader's start is not what is measured
        own = Path(OURS.get(case, OURS["at risk"]))
        shutil.copyfile(source, own)
        if case in OURS:
            return (lambda: run.log_checkpoint(own, step=100, metrics={"AP": 0.5})), lambda: run.finish(timeout_s=0)
        state = torch.load(source)

        def save_again() -> None:
            if not AGAIN[case]:
                run._before_rewrite(own)
            torch.save(state, own)

        os.sync()
        run.log_checkpoint(own, step=100)
        return save_again, lambda: run.finish(timeout_s=0)
    if case == "torch.save":
        import torch

        state = torch.load(source)
        return (lambda: torch.save(state, "again.pth")), lambda: None
    if case == "shutil.copyfile":
        return (lambda: shutil.copyfile(source, "again.pth")), lambda: None
    if case == "mlflow.log_artifact":
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("bench")
        mlflow.start_run()
        mlflow.log_text("warm", "warm.txt")
        return (lambda: mlflow.log_artifact(str(source))), mlflow.end_run
    import wandb

    wandb.init(mode="offline", project="bench", settings=wandb.Settings(silent=True))
    artifact = wandb.Artifact("model", "model")
    return (lambda: artifact.add_file(str(source))), lambda: os._exit(0)


def one(case: str, source: Path, uri: str) -> None:
    """Measure one case in this process and print it as JSON."""
    call, close = prepare(case, source, uri)
    if case in AGAIN:
        time.sleep(AGAIN[case])
    else:
        os.sync()
        for path in (source, Path(OURS.get(case, source))):  # into the page cache, and memory for as many pages more
            shutil.copyfile(path, "warm")
            os.unlink("warm")
    before = time.perf_counter()
    call()
    print(json.dumps({"ms": (time.perf_counter() - before) * 1e3}), flush=True)
    close()


def run_case(case: str, source: Path, uri: str) -> float:
    """Run one case in a process of its own, in a folder beside the file: on the same file system."""
    with tempfile.TemporaryDirectory(dir=source.parent, ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
        environment |= {f"WANDB_{key}_DIR": folder for key in ("CACHE", "CONFIG", "DATA")}
        environment |= {"WANDB_SILENT": "true", "UNIFIED_TRACKER_LINGER_S": "5"}
        command = [sys.executable, __file__, "--case", case, "--source", str(source), "--uri", uri]
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        end_uploaders(folder)
        lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(f"{case} failed:\n{process.stderr[-3000:]}")
        return float(json.loads(lines[-1])["ms"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure; default: that of temporary files")
    parser.add_argument("--case", choices=(*PEERS, *OURS, *AGAIN), help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--uri", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        one(arguments.case, arguments.source, arguments.uri)
        return
    import torch

    cases = (*PEERS, *OURS, *AGAIN)
    results: dict[str, list[float]] = {case: [] for case in cases}
    with (
        tempfile.TemporaryDirectory(dir=arguments.dir, ignore_cleanup_errors=True) as name,
        mlflow_server(Path(name)) as uri,
    ):
        source = Path(name) / "checkpoint.pth"
        weights = torch.randint(0, 256, (arguments.mib << 20,), dtype=torch.uint8)
        torch.save({"model": weights}, source)
        for number in range(arguments.rounds):
            for case in random.Random(number).sample(cases, len(cases)):
                results[case].append(run_case(case, source, uri))
    report(arguments.mib, results)


def report(mib: int, results: dict[str, list[float]]) -> None:
    """The table, and what it means for the goal."""
    middle = {case: statistics.median(times) for case, times in results.items()}
    print(f"| {mib} MiB | median ms | slowest ms | times `once` | times `at risk` |")
    print("|---|---:|---:|---:|---:|")
    for case in sorted(middle, key=lambda case: middle[case]):
        time_ms = middle[case]
        print(
            f"| `{case}` | {time_ms:,.2f} | {max(results[case]):,.2f} "
            f"| {time_ms / middle['once']:,.1f} | {time_ms / middle['at risk']:,.1f} |"
        )
    cheapest = min(PEERS, key=lambda case: middle[case])
    words = []
    for case in OURS:
        factor = middle[cheapest] / middle[case]
        words.append(f"{case} {'met' if factor >= GOAL else 'missed'} ({factor:,.2f} times cheaper)")
    print(f"\ngoal, {GOAL} times cheaper than the cheapest peer ({cheapest}): {'; '.join(words)}")


if __name__ == "__main__":
    main()
