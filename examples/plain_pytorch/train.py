"""Tracking a plain PyTorch loop: a small network that counts shapes, on generated pictures. No detection framework.

    python examples/plain_pytorch/train.py                        # MLflow, in ./mlflow.db
    python examples/plain_pytorch/train.py --tracker wandb        # W&B; offline where no key is there
    UNIFIED_TRACKER=off python examples/plain_pytorch/train.py    # the same program, untracked

Everything that tracking needs is the `with` and the lines that begin with `run.`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import unified_tracker as ut
from unified_tracker.demo.shapes import CATEGORIES, ShapesDataset, make_shapes

SIZE = 64


def load(split: ShapesDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures, shape (n, 3, SIZE, SIZE), 0 to 1; and how many shapes of each category they show, shape (n, 3)."""
    coco = json.loads(split.annotations.read_text())
    pictures = [np.asarray(Image.open(split.images / image["file_name"])) for image in coco["images"]]
    counts = torch.zeros(len(pictures), len(CATEGORIES))
    for annotation in coco["annotations"]:
        counts[annotation["image_id"] - 1, annotation["category_id"] - 1] += 1
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255, counts


def network() -> torch.nn.Module:
    """Three convolutions and a linear layer."""
    layers: list[torch.nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [torch.nn.Conv2d(before, after, 3, stride=2, padding=1), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(32 * (SIZE // 8) ** 2, len(CATEGORIES)))


def evaluate(model: torch.nn.Module, images: torch.Tensor, counts: torch.Tensor) -> dict[str, float]:
    """Mean absolute error, over all categories and for each of them."""
    with torch.no_grad():
        error = (model(images) - counts).abs()
    each = {f"val/error_{name}": float(error[:, i].mean()) for i, name in enumerate(CATEGORIES)}
    return {"val/error": float(error.mean()), **each}


def main() -> None:
    """Train, evaluate now and then, keep the checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracker", help="mlflow, wandb, a plugin's name, or several with commas; default: see README")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--output", type=Path, default=Path("plain-pytorch-output"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    images, counts = load(make_shapes(arguments.output / "shapes", split="train", images=96, size=SIZE))
    val_images, val_counts = load(make_shapes(arguments.output / "shapes", split="val", images=24, size=SIZE))
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr)

    config = {"iterations": arguments.iterations, "lr": arguments.lr, "batch_size": 16, "optimizer": "Adam"}
    with ut.start_run(
        arguments.tracker, project="plain-pytorch", name="count shapes", config=config, dir=arguments.output
    ) as run:
        run.log_image("train/sample", images[0].permute(1, 2, 0).numpy(), step=0)
        lowest = float("inf")
        for step in range(1, arguments.iterations + 1):
            batch = torch.randint(len(images), (16,))
            loss = torch.nn.functional.smooth_l1_loss(model(images[batch]), counts[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log_metrics({"train/loss": loss.item(), "train/lr": arguments.lr}, step=step)
            if step % 20 == 0:
                metrics = evaluate(model, val_images, val_counts)
                run.log_metrics(metrics, step=step)
                path = arguments.output / f"model_{step:04d}.pth"
                torch.save(model.state_dict(), path)
                better = metrics["val/error"] < lowest
                lowest = min(lowest, metrics["val/error"])
                aliases = [f"iter_{step}", *(["best", "best-val.error"] if better else [])]
                run.log_checkpoint(path, step=step, metrics=metrics, aliases=aliases)
                print(f"step {step}: loss {loss.item():.3f}, error {metrics['val/error']:.3f}")
    print(f"run {run.id}")


if __name__ == "__main__":
    main()
