"""Shapes: a generated data set in COCO layout, with boxes and masks. Small enough to train on a laptop's CPU.

Circles, squares and triangles of random size and colour on a noisy ground. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

CATEGORIES: Final = ("circle", "square", "triangle")


class ShapesDataset(NamedTuple):
    """Where one split stands: the COCO annotations and the folder of images."""

    annotations: Path
    images: Path


def make_shapes(folder: Path, *, split: str, images: int, size: int = 128, seed: int = 0) -> ShapesDataset:
    """Write one split below `folder`, as `<split>.json` and `<split>/*.jpg`.

    Args:
        folder: Created if missing.
        split: "train", "val", ...
        images: How many.
        size: Height and width in pixels.
        seed: Seed of the split; private generator, global random state is not touched.
    """
    rng = np.random.default_rng([seed, *split.encode()])
    target = ShapesDataset(folder / f"{split}.json", folder / split)
    target.images.mkdir(parents=True, exist_ok=True)
    coco: dict[str, Any] = {
        "info": {"description": f"generated shapes, {split}"},
        "licenses": [],
        "categories": [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CATEGORIES)],
        "images": [],
        "annotations": [],
    }
    for number in range(1, images + 1):
        file_name = f"{number:05d}.jpg"
        ground = rng.normal(rng.uniform(80, 170), 12, (size, size, 3)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(ground)
        for _ in range(int(rng.integers(1, 5))):
            category = int(rng.integers(len(CATEGORIES)))
            polygon = _outline(CATEGORIES[category], rng, size)
            ImageDraw.Draw(picture).polygon(polygon, fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
            coco["annotations"].append(_annotation(len(coco["annotations"]) + 1, number, category + 1, polygon))
        picture.save(target.images / file_name, quality=92)
        coco["images"].append({"id": number, "file_name": file_name, "height": size, "width": size})
    target.annotations.write_text(json.dumps(coco), encoding="utf-8")
    return target


def _outline(kind: str, rng: np.random.Generator, size: int) -> list[tuple[float, float]]:
    radius = float(rng.uniform(size / 12, size / 5))
    x, y = (float(v) for v in rng.uniform(radius + 1, size - radius - 1, 2))
    corners, turn = {"circle": (24, 0.0), "square": (4, math.pi / 4), "triangle": (3, -math.pi / 2)}[kind]
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return [(round(x + radius * math.cos(a), 1), round(y + radius * math.sin(a), 1)) for a in angles]


def _annotation(number: int, image: int, category: int, polygon: list[tuple[float, float]]) -> dict[str, Any]:
    xs, ys = [x for x, _ in polygon], [y for _, y in polygon]
    width, height = round(max(xs) - min(xs), 1), round(max(ys) - min(ys), 1)
    ring = [*polygon[1:], polygon[0]]
    area = abs(sum(x * v - u * y for (x, y), (u, v) in zip(polygon, ring, strict=True))) / 2
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [min(xs), min(ys), width, height],  # xywh, pixels
        "segmentation": [[c for point in polygon for c in point]],
        "area": round(area, 2),
        "iscrowd": 0,
    }
