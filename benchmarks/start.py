"""How long a training waits at its start and its end when no backend answers.

    python benchmarks/start.py [--starts 10]

Both backends are black holes: servers that accept connections and never answer. Each start is a process of its own, as
a training is: `import unified_tracker` (not counted, shown), `start_run(["mlflow", "wandb"])`, ten `log_metrics`,
`finish(timeout_s=2)`. Three places, in turn: a folder outside any repository; a git repository of 5,000 files; the same
with PyTorch imported, as it is in a training. `finish` must say what is pending and the command that delivers it.
Goal: `start_run` within 200 ms, `finish` within its limit and half a second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _processes import end_uploaders
from _servers import black_hole

CASES = ("no repository", "git repository", "git repository, torch imported")
TIMEOUT_S = 2.0
GOAL_MS, GOAL_OVER_S = 200, 0.5
FILES = 5000

CHILD = """
import json, sys, time
if sys.argv[3] == "torch":
    import torch
before = time.perf_counter()
import unified_tracker as ut
imported = time.perf_counter()
options = {"mlflow": {"tracking_uri": sys.argv[1]}, "wandb": {"mode": "online"}}
run = ut.start_run(["mlflow", "wandb"], project="bench", dir=sys.argv[2], options=options)
started = time.perf_counter()
for step in range(10):
    run.log_metrics({"loss": 1.0 / (step + 1)}, step)
logged = time.perf_counter()
done = run.finish(timeout_s=float(sys.argv[4]))
finished = time.perf_counter()
print(json.dumps({"import_ms": (imported - before) * 1e3, "start_ms": (started - imported) * 1e3,
                  "finish_s": finished - logged, "done": done}), flush=True)
"""


def one(case: str, folder: Path, repository: Path, hole: str) -> dict[str, float]:
    """One start, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "WANDB_"))}
    environment |= {"WANDB_BASE_URL": hole, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "UNIFIED_TRACKER_LINGER_S": "1"}
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as runs:
        for key in ("CACHE", "CONFIG", "DATA"):
            environment[f"WANDB_{key}_DIR"] = runs
        torch = "torch" if "torch" in case else "-"
        process = subprocess.run(
            [sys.executable, "-c", CHILD, hole, runs, torch, str(TIMEOUT_S)],
            cwd=folder if case == "no repository" else repository,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        end_uploaders(runs)
    if process.returncode:
        raise RuntimeError(f"{case} failed:\n{process.stderr[-3000:]}")
    result: dict[str, float] = json.loads(process.stdout)
    said = process.stderr
    for backend in ("mlflow", "wandb"):
        if f"{backend}: not everything is delivered yet" not in said or "unified-tracker sync " not in said:
            raise RuntimeError(f"finish did not say what is pending in {backend}:\n{said}")
    return result


def make_repository(folder: Path) -> Path:
    """A git repository of many files, all committed, one changed since."""
    repository = folder / "repository"
    for number in range(FILES):
        path = repository / f"{number % 100:02d}" / f"{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"number = {number}\n")
    git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-C", str(repository)]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    (repository / "00" / "0.py").write_text("number = -1\n")
    return repository


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=10, help="starts in each place")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, black_hole() as hole:
        folder = Path(name)
        repository = make_repository(folder)
        for _ in range(arguments.starts):
            for case in CASES:
                results[case].append(one(case, folder, repository, hole))
    report(results)


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """The table, and what it means for the goals."""
    limit = f"finish({TIMEOUT_S:g} s) s, max"
    print(f"| both backends black-holed | starts | import ms | start_run ms, median | max | {limit} |")
    print("|---|---:|---:|---:|---:|---:|")
    for case, rows in results.items():
        starts = [row["start_ms"] for row in rows]
        imports = statistics.median(row["import_ms"] for row in rows)
        print(
            f"| {case} | {len(rows)} | {imports:.0f} | {statistics.median(starts):.0f} | {max(starts):.0f} "
            f"| {max(row['finish_s'] for row in rows):.2f} |"
        )
    every = [row for rows in results.values() for row in rows]
    middle = statistics.median(row["start_ms"] for row in every)
    slow, late = max(row["start_ms"] for row in every), max(row["finish_s"] for row in every) - TIMEOUT_S
    met = "met" if slow <= GOAL_MS and late <= GOAL_OVER_S else "missed"
    print(
        f"\ngoal {met}: start_run {middle:.0f} ms median, {slow:.0f} ms at most (goal {GOAL_MS}); finish {late:.2f} s "
        f"over its limit at most (goal {GOAL_OVER_S:g}), each time naming what is pending and the command"
    )


if __name__ == "__main__":
    main()
