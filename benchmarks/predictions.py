"""What recording the predictions of an evaluation costs, beside today's ways, in one run.

    python benchmarks/predictions.py [--images 100] [--rounds 3] [--evaluations 3]

Photograph-like JPEG files of 640x480; each image has 20 boxes and 5 instance masks. The masks come as the frameworks
have them after inference: booleans of shape (n, height, width). Each case in a process of its own, all of them once a
round in a new random order.

* blocked: seconds of the calling thread for one evaluation, median over the evaluations after the first; `first` is the
  first one, with what is done once (the sample and its ground truth). Medians over the rounds.
* CPU: seconds of all processes for everything, uploader and W&B's service included, until it is delivered.
* files, MB: what lies on the disk afterwards, run directory, artifacts and W&B's folders together.

`floor`: the masks as run-length encoding, and all as JSON, no file. `wandb, as MMDetWandbHook`: its two tables,
offline. `mlflow.log_image`: pictures with boxes and masks drawn into them, into SQLite and a folder. Goals: blocked at
most twice the floor (0.1 s with masks, 20 ms with boxes only); a tenth of MMDetWandbHook's bytes.
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
from typing import Any

import numpy as np
from _processes import CpuWatch, end_uploaders, uploaders

HEIGHT, WIDTH, BOXES, MASKS, CLASSES = 480, 640, 20, 5, 80
NAMES = [f"class_{index:02d}" for index in range(CLASSES)]
OURS = {
    "ours, MLflow": ["mlflow"],
    "ours, W&B offline": ["wandb"],
    "ours, both": ["mlflow", "wandb"],
    "ours, MLflow, boxes only": ["mlflow"],
}
FLOORS = ("floor: RLE and JSON", "floor: JSON, boxes only")
PEERS = ("wandb, as MMDetWandbHook", "mlflow.log_image")
GOAL_MASKS_S, GOAL_BOXES_S, GOAL_FLOORS, GOAL_BYTES = 0.1, 0.02, 2.0, 0.1


def make_images(folder: Path, count: int) -> None:
    """Photograph-like files, and what is to be found in them."""
    import cv2

    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    for number in range(count):
        a, b = rng.uniform(-1, 1, 2)
        waves = [128 + 90 * np.sin((a * x + b * y) / rng.uniform(60, 300) + c) for c in rng.uniform(0, 6, 3)]
        coarse = rng.normal(0, 40, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.float32)
        image = np.stack(waves, -1) + cv2.resize(coarse, (WIDTH, HEIGHT)) + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
        image = np.clip(image, 0, 255).astype(np.uint8)
        corner, size = rng.uniform(0, [WIDTH - 120, HEIGHT - 120], (BOXES, 2)), rng.uniform(20, 120, (BOXES, 2))
        boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
        masks = np.zeros((MASKS, HEIGHT, WIDTH), np.uint8)
        for index, (low, extent) in enumerate(zip(corner, size, strict=True)):
            center, axes = tuple(int(v) for v in low + extent / 2), tuple(int(v / 2) for v in extent)
            cv2.ellipse(image, center, axes, 0, 0, 360, tuple(int(v) for v in rng.integers(0, 255, 3)), -1)
            if index < MASKS:
                masks[index] = cv2.ellipse(masks[index], center, axes, float(rng.uniform(0, 90)), 0, 360, 1, -1)
        cv2.imwrite(str(folder / f"{number:06d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        labels, scores = rng.integers(0, CLASSES, BOXES), rng.uniform(0.31, 1, BOXES).astype(np.float32)
        np.savez(folder / f"{number:06d}.npz", boxes=boxes, labels=labels, scores=scores, masks=np.packbits(masks))


def load(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.npz")):
        each = dict(np.load(path))
        bits = np.unpackbits(each["masks"], count=MASKS * HEIGHT * WIDTH)
        each["masks"] = bits.reshape(MASKS, HEIGHT, WIDTH).astype(bool)
        found.append({"path": path.with_suffix(".jpg"), **each})
    return found


Case = tuple[Callable[[int], object], Callable[[], object]]


def floor_case(images: list[dict[str, Any]], *, with_masks: bool) -> Case:
    from pycocotools import mask as coco

    def evaluation(_: int) -> str:
        rows = []
        for each in images:
            masks = (
                [coco.encode(np.asfortranarray(mask)) for mask in each["masks"].view(np.uint8)] if with_masks else []
            )
            counts = [mask["counts"].decode() for mask in masks]
            rows.append((each["boxes"].tolist(), each["labels"].tolist(), each["scores"].tolist(), counts))
        return json.dumps(rows)

    return evaluation, lambda: None


def our_case(images: list[dict[str, Any]], backends: list[str], *, with_masks: bool) -> Case:
    """Boxes and masks are two tasks here only because not every box has a mask: five instances have both."""
    import unified_tracker as ut
    from unified_tracker.predictions import Detections, SampleEvaluation, SampleImage, ValidationSample

    def found(each: dict[str, Any], scores: Any) -> dict[str, Detections]:
        boxed = Detections(each["labels"], each["boxes"], scores)
        if not with_masks:
            return {"instances": boxed}
        part = None if scores is None else scores[:MASKS]
        return {"instances": boxed, "panoptic": Detections(each["labels"][:MASKS], None, part, each["masks"])}

    options = {"mlflow": {"tracking_uri": "sqlite:///mlflow.db"}, "wandb": {"mode": "offline"}}
    run = ut.start_run(backends, project="bench", options={name: options[name] for name in backends})
    sample = ValidationSample(
        "bench",
        NAMES,
        [
            SampleImage(number, HEIGHT, WIDTH, path=each["path"], truth=found(each, None))
            for number, each in enumerate(images)
        ],
    )

    def evaluation(number: int) -> None:
        predictions = {index: found(each, each["scores"]) for index, each in enumerate(images)}
        run.log_predictions(SampleEvaluation(sample, predictions), step=number)

    def close() -> None:
        if not run.finish(timeout_s=500):
            raise RuntimeError("not delivered")

    return evaluation, close


def drawn(each: dict[str, Any]) -> Any:
    import cv2

    image = cv2.imread(str(each["path"]))
    for index, mask in enumerate(each["masks"]):
        image[mask] = image[mask] // 2 + np.array([index * 50, 255 - index * 50, 128], np.uint8) // 2
    for box, label, score in zip(each["boxes"], each["labels"], each["scores"], strict=True):
        corners = box.astype(int).tolist()
        cv2.rectangle(image, corners[:2], corners[2:], (0, 255, 0), 2)
        text = f"{NAMES[label]} {score:.2f}"
        cv2.putText(image, text, corners[:2], cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def mlflow_case(images: list[dict[str, Any]]) -> Case:
    import mlflow

    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("bench")
    mlflow.start_run()

    def evaluation(number: int) -> None:
        for index, each in enumerate(images):
            mlflow.log_image(drawn(each), f"eval_{number}/{index}.jpg")

    return evaluation, mlflow.end_run


def wandb_case(images: list[dict[str, Any]]) -> Case:
    """What `MMDetWandbHook` of MMDetection 2.28 does: a table of ground truth once, a table with every evaluation."""
    import cv2
    import wandb

    run = wandb.init(mode="offline", project="bench", settings=wandb.Settings(silent=True))
    names = {index + 1: name for index, name in enumerate(NAMES)}
    classes = wandb.Classes([{"id": number, "name": name} for number, name in names.items()])

    def layers(each: dict[str, Any]) -> dict[str, Any]:
        data = [
            {
                "position": dict(zip(("minX", "minY", "maxX", "maxY"), map(int, box), strict=True)),
                "class_id": int(label) + 1,
                "box_caption": f"{NAMES[label]} {score:.2f}",
                "domain": "pixel",
            }
            for box, label, score in zip(each["boxes"], each["labels"], each["scores"], strict=True)
        ]
        masks: dict[int, Any] = {}
        for mask, label in zip(each["masks"], each["labels"], strict=False):
            masks[int(label) + 1] = np.logical_or(masks.get(int(label) + 1, mask), mask)
        return {
            "boxes": {"predictions": {"box_data": data, "class_labels": names}},
            "masks": {
                names[number]: {"mask_data": mask.astype(np.uint8) * number, "class_labels": names}
                for number, mask in masks.items()
            },
            "classes": classes,
        }

    truth = wandb.Table(columns=["image_name", "image"])

    def evaluation(number: int) -> None:
        if not truth.data:
            for each in images:
                pixels = cv2.cvtColor(cv2.imread(str(each["path"])), cv2.COLOR_BGR2RGB)
                truth.add_data(each["path"].name, wandb.Image(pixels, **layers(each)))
            once = wandb.Artifact("val", type="dataset")
            once.add(truth, "val_data")
            run.log_artifact(once)
        table = wandb.Table(columns=["image_name", "ground_truth", "prediction"])
        for index, each in enumerate(images):
            row = truth.data[index]
            table.add_data(row[0], row[1], wandb.Image(row[1], **layers(each)))
        artifact = wandb.Artifact(f"run_{run.id}_pred", type="evaluation")
        artifact.add(table, "eval_data")
        run.log_artifact(artifact, aliases=["latest", f"epoch_{number}"])

    return evaluation, run.finish


def prepare(case: str, images: list[dict[str, Any]]) -> Case:
    if case in FLOORS:
        return floor_case(images, with_masks=case == FLOORS[0])
    if case in OURS:
        return our_case(images, OURS[case], with_masks="boxes" not in case)
    return mlflow_case(images) if case.startswith("mlflow") else wandb_case(images)


def one(case: str, folder: Path, evaluations: int) -> None:
    """Measure one case in this process and print it as JSON."""
    evaluation, close = prepare(case, load(folder))
    if case in OURS:
        time.sleep(3)  # the uploader's start is not what is measured
    watch = CpuWatch(lambda: [os.getpid(), *uploaders(Path.cwd())])
    blocked = []
    for number in range(1, evaluations + 1):
        before = time.perf_counter()
        evaluation(number)
        blocked.append(time.perf_counter() - before)
        time.sleep(0.5)  # an epoch goes by
    close()
    cpu_s = watch.end()
    files = [path for path in Path.cwd().rglob("*") if path.is_file() and not path.name.startswith("mlflow.db")]
    size = sum(path.stat().st_blocks * 512 // path.stat().st_nlink for path in files)
    print(json.dumps({"blocked": blocked, "cpu_s": cpu_s, "files": len(files), "mb": size / 1e6}), flush=True)


def run_case(case: str, folder: Path, evaluations: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
        environment |= {f"WANDB_{key}_DIR": f"{name}/wandb-{key.lower()}" for key in ("CACHE", "CONFIG", "DATA")}
        environment |= {"WANDB_SILENT": "true"}
        command = [sys.executable, str(Path(__file__).absolute()), "--case", case, "--source", str(folder)]
        command += ["--evaluations", str(evaluations)]
        process = subprocess.run(command, cwd=name, env=environment, capture_output=True, text=True, timeout=900)
        end_uploaders(name)
        lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(f"{case} failed:\n{process.stderr[-3000:]}")
        return dict(json.loads(lines[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=[*FLOORS, *OURS, *PEERS])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        one(arguments.case, arguments.source, arguments.evaluations)
        return
    results: dict[str, list[dict[str, Any]]] = {case: [] for case in arguments.cases}
    with tempfile.TemporaryDirectory() as name:
        make_images(Path(name), arguments.images)
        for number in range(arguments.rounds):
            for case in random.Random(number).sample(arguments.cases, len(arguments.cases)):
                results[case].append(run_case(case, Path(name), arguments.evaluations))
    report(results, arguments.images, arguments.evaluations)


def report(results: dict[str, list[dict[str, Any]]], images: int, evaluations: int) -> None:
    """The table, and what it means for the goals."""

    def median(case: str, value: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(value(each) for each in results[case])

    blocked = {case: median(case, lambda each: statistics.median(each["blocked"][1:])) for case in results}
    print(f"| {images} images, {evaluations} evaluations | blocked s | first s | CPU s | files | MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for case in sorted(blocked, key=lambda case: blocked[case]):
        first, cpu = median(case, lambda each: each["blocked"][0]), median(case, lambda each: each["cpu_s"])
        files, size = median(case, lambda each: each["files"]), median(case, lambda each: each["mb"])
        print(f"| `{case}` | {blocked[case]:.4f} | {first:.4f} | {cpu:.2f} | {files:,.0f} | {size:,.1f} |")
    words = []
    for case in OURS:
        floor, goal = (FLOORS[1], GOAL_BOXES_S) if "boxes" in case else (FLOORS[0], GOAL_MASKS_S)
        if case in blocked and floor in blocked:
            met = blocked[case] <= max(goal, GOAL_FLOORS * blocked[floor])
            words.append(f"{case}: {'met' if met else 'missed'} ({blocked[case] / blocked[floor]:.2f} times the floor)")
    print(f"\nblocked, goal {GOAL_MASKS_S} s with masks, {GOAL_BOXES_S} s without: {'; '.join(words)}")
    if PEERS[0] in results:
        peer = median(PEERS[0], lambda each: each["mb"])
        shares = [f"{case}: {median(case, lambda each: each['mb']) / peer:.2f}" for case in OURS if case in results]
        print(f"bytes, goal {GOAL_BYTES} of {PEERS[0]}: {'; '.join(shares)}")


if __name__ == "__main__":
    main()
