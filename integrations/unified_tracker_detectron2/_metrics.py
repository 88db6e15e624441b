"""Detectron2's scalar names and units, translated into the canonical ones. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

EVALUATION: Final = re.compile(
    r"(?:(?P<dataset>.+)/)?(?P<task>bbox|segm|keypoints|panoptic_seg|sem_seg|box_proposals)/(?P<metric>[^/]+)"
)
TASKS: Final = {"panoptic_seg": "panoptic", "sem_seg": "semantic", "box_proposals": "bbox"}
AVERAGE_PRECISION: Final = {
    "AP": "mAP",
    "AP50": "mAP_50",
    "AP75": "mAP_75",
    "APs": "mAP_small",
    "APm": "mAP_medium",
    "APl": "mAP_large",
}
TRAINING: Final = {
    "total_loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "time": "perf/iter_time_s",
    "data_time": "perf/data_time_s",
}
HEADLINES: Final = {"AP", "PQ", "mIoU"}


def is_evaluation(name: str) -> bool:
    """True for the name of an evaluation's result."""
    return EVALUATION.fullmatch(name) is not None


def canonical_training(own: Mapping[str, float], images: int | None) -> dict[str, float]:
    """Canonical names of training scalars.

    Args:
        own: Detectron2's.
        images: Images an iteration, over all processes; None if unknown.
    """
    canonical: dict[str, float] = {}
    for name, value in own.items():
        if name in TRAINING:
            canonical[TRAINING[name]] = value
        elif name.startswith("loss_") and "/" not in name:
            canonical[f"train/{name}"] = value
    seconds = own.get("time")
    if images and seconds:
        canonical["perf/images_per_s"] = images / seconds
    return canonical


def canonical_evaluation(own: Mapping[str, float], split: str = "val") -> dict[str, float]:
    """Canonical names and units (0 to 1) of evaluation results; NaN is Detectron2's "not applicable" and left out."""
    canonical: dict[str, float] = {}
    for name, value in own.items():
        parts = _parts(name)
        if parts is None or not math.isfinite(value):
            continue
        dataset, task, metric = parts
        if metric.startswith(("AP-", "IoU-", "ACC-", "BoundaryIoU-")):
            continue
        if (recall := re.fullmatch(r"AR([sml]?)@(\d+)", metric)) is not None:
            size = {"": "", "s": "_small", "m": "_medium", "l": "_large"}[recall[1]]
            metric = f"AR{size}_{recall[2]}"
        prefix = f"{split}/{dataset}/{task}" if dataset else f"{split}/{task}"
        canonical[f"{prefix}/{AVERAGE_PRECISION.get(metric, metric)}"] = value / 100
    return canonical


def headline(own: Mapping[str, float]) -> dict[str, float]:
    """The metrics by which a checkpoint can be best, boxes first, each under Detectron2's and the canonical name."""
    found: dict[str, float] = {}
    for name, value in own.items():
        parts = _parts(name)
        if parts is None or parts[2] not in HEADLINES or name.split("/")[-2] == "box_proposals":
            continue
        dataset, task, metric = parts
        found[name.replace("/", ".")] = value
        prefix = f"{dataset}." if dataset else ""
        found[f"{prefix}{task}.{AVERAGE_PRECISION.get(metric, metric)}"] = value / 100
    return dict(sorted(found.items(), key=lambda item: "bbox" not in item[0]))


def per_class(own: Mapping[str, float]) -> dict[str, list[tuple[str, float | None]]]:
    """Task to (category, AP from 0 to 1; None where not applicable)."""
    tables: dict[str, list[tuple[str, float | None]]] = {}
    for name, value in own.items():
        parts = _parts(name)
        if parts is not None and parts[2].startswith("AP-"):
            dataset, task, metric = parts
            rows = tables.setdefault(f"{dataset}/{task}" if dataset else task, [])
            rows.append((metric.removeprefix("AP-"), value / 100 if math.isfinite(value) else None))
    return tables


def _parts(name: str) -> tuple[str | None, str, str] | None:
    match = EVALUATION.fullmatch(name)
    if match is None:
        return None
    return match["dataset"], TASKS.get(match["task"], match["task"]), match["metric"]
