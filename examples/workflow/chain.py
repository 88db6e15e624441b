"""The whole way of a detector: data sets by fractions, training by reference, evaluation, two stages of fine-tuning.

    python examples/workflow/chain.py                                            # Detectron2, MLflow, generated shapes
    python examples/workflow/chain.py --framework mmdetection --tracker wandb
    python examples/workflow/chain.py --json train.json --images images --boxes-only --steps 60 --serve

Every step is a command as a user types it; it is printed before it runs. All of it happens below `--output`; trainings
have a cache of their own (`$UNIFIED_TRACKER_CACHE`), as on a second machine. With `--serve` (MLflow), `mlflow models
serve` answers for the best checkpoint.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from unified_tracker.demo.shapes import make_shapes

EXAMPLES = Path(__file__).parents[1]
TRACKER = [sys.executable, "-m", "unified_tracker.cli"]


class Chain:
    """The steps, with what they have in common."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.output: Path = arguments.output.absolute()
        self.output.mkdir(parents=True, exist_ok=True)
        self.scheme = f"{arguments.tracker}-artifact:/"

    def run(self, *command: str | Path, cache: str = "") -> str:
        """Run a command in the output folder; gives what it prints."""
        words = [str(word) for word in command]
        print(f"\n$ {shlex.join(words)}", flush=True)
        environment = {**os.environ, "UNIFIED_TRACKER": self.arguments.tracker}
        if cache:
            environment["UNIFIED_TRACKER_CACHE"] = str(self.output / cache)
        if self.arguments.tracker == "wandb":
            environment.setdefault("WANDB_MODE", "offline")
        done = subprocess.run(words, cwd=self.output, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{done.stdout}\nended with {done.returncode}")
        return done.stdout

    def dataset(self, name: str, json_file: Path, images: Path, select: float, after: float) -> str:
        """Make a data set from a part of another; gives its reference."""
        fractions = ["--select-fraction", str(select), "--after-fraction", str(after)]
        source = ["--json-file", json_file, "--image-dir", images]
        made = json.loads(
            self.run(
                *(*TRACKER, "dataset", "create", "--name", name, *source, *fractions, "--project", "chain", "--json"),
                cache="cache-1",
            )
        )
        print(f"{made['name']}: {made['outcome']}, {made['images']} images, {made['annotations']} annotations")
        return str(made["references"][self.arguments.tracker])

    def train(self, name: str, data: dict[str, str], weights: str = "", *, evaluate: bool = False) -> str:
        """Train or evaluate by reference, on a cache that begins empty; gives the id of the run."""
        arguments = self.arguments
        folder = self.output / name
        detectron2 = arguments.framework == "detectron2"
        program = EXAMPLES / arguments.framework / "train.py"
        command: list[str | Path] = [sys.executable, program, "--tracker", arguments.tracker, "--output", folder]
        command += ["--size", str(arguments.size), *(["--boxes-only"] if arguments.boxes_only else [])]
        if not evaluate:
            command += ["--train", data["train"]]
        command += ["--val", data["val"], *(["--eval-only"] if evaluate else [])]
        if detectron2:
            command += [] if evaluate else ["--iterations", str(arguments.steps)]
            command += [
                "TRACKER.PROJECT",
                "chain",
                "TRACKER.RUN_NAME",
                name,
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
                "0.0",
            ]
            command += ["MODEL.WEIGHTS", weights] if weights else []
        else:
            command += [] if evaluate else ["--epochs", str(arguments.epochs)]
            command += ["--load-from", weights] if weights else []
            hook = "custom_hooks.0.init_kwargs"
            command += ["--cfg-options", f"{hook}.project=chain", f"{hook}.name={name}"]
            command += ["model.test_cfg.rcnn.score_thr=0.0"]
        self.run(*command, cache="cache-2")
        (run,) = (folder / "unified-tracker").iterdir()
        return run.name

    def artifact(self, *words: str) -> str:
        """`unified-tracker artifact ...`."""
        said = self.run(*TRACKER, "artifact", *words, cache="cache-2")
        print(said)
        return said


def serve_and_ask(chain: Chain, reference: str, image: Path) -> list[dict[str, Any]]:
    """Let MLflow serve a checkpoint, send it a picture, and give what it answers."""
    listed = json.loads(chain.run(*TRACKER, "artifact", "get", reference, "--json", cache="cache-2"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", listed["uri"], "--port", str(port)]
    command += ["--env-manager", "local"]
    print(f"\n$ {shlex.join(command)}", flush=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{chain.output / 'mlflow.db'}")
    with (chain.output / "serve.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=chain.output, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                if time.monotonic() > end or server.poll() is not None:
                    raise SystemExit((chain.output / "serve.log").read_text()) from None
                time.sleep(0.2)
        picture = base64.b64encode(image.read_bytes()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": [picture]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: list[dict[str, Any]] = json.load(answer)["predictions"][0]
            return found
    finally:
        server.terminate()
        server.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=["detectron2", "mmdetection"], default="detectron2")
    parser.add_argument("--tracker", choices=["mlflow", "wandb"], default="mlflow")
    parser.add_argument("--output", type=Path, default=Path("chain-output"))
    parser.add_argument("--json", type=Path, help="COCO data; default: generated shapes")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--steps", type=int, default=9, help="iterations of a training, Detectron2")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of a training, MMDetection")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--boxes-only", action="store_true")
    parser.add_argument("--serve", action="store_true", help="let MLflow serve the best checkpoint, and ask it")
    arguments = parser.parse_args()
    chain = Chain(arguments)
    source, images = arguments.json, arguments.images
    if source is None:
        source, images = make_shapes(chain.output / "shapes", split="all", images=40)
    source, images = source.absolute(), images.absolute()

    data = {
        "train": chain.dataset("chain-train", source, images, 0.8, 0.0),
        "val": chain.dataset("chain-val", source, images, 0.2, 0.8),
    }
    first = chain.train("first", data)
    best = f"{chain.scheme}/run-{first}-model:best"
    chain.train("evaluated", data, best, evaluate=True)
    second = chain.train("fine-tuned", data, best)
    third = chain.train("fine-tuned-again", data, f"{chain.scheme}/run-{second}-model:best")
    last = f"{chain.scheme}/run-{third}-model:latest"
    chain.artifact("list", "--type", "model", "--sort", "bbox/mAP")
    chain.artifact("lineage", last)
    chain.artifact("lineage", best)
    if arguments.serve:
        annotations = json.loads(source.read_text(encoding="utf-8"))
        picture = images / annotations["images"][0]["file_name"]
        found = serve_and_ask(chain, f"{chain.scheme}/run-{third}-model:best", picture)
        print(
            f"{picture.name}: {len(found)} detections, first {json.dumps(found[0], default=str)[:300] if found else ''}"
        )
    print(json.dumps({"first": first, "second": second, "third": third}))


if __name__ == "__main__":
    main()
