"""MMDetection's scalar names and units, translated into the canonical ones. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from numbers import Real
from typing import Any, Final, NamedTuple

TASK_PREFIX: Final = re.compile(r"(?P<task>bbox|segm|keypoints)_(?P<metric>.+)")
RECALL: Final = re.compile(r"AR_?(?P<size>[sml]?)@(?P<number>\d+)")
PRECISION: Final = {
    **dict.fromkeys(("mAP", "AP"), "mAP"),
    **dict.fromkeys(("mAP_50", "AP50", "AP@50", "AP .5"), "mAP_50"),
    **dict.fromkeys(("mAP_75", "AP75", "AP .75"), "mAP_75"),
    **dict.fromkeys(("mAP_s", "APs"), "mAP_small"),
    **dict.fromkeys(("mAP_m", "APm", "AP (M)"), "mAP_medium"),
    **dict.fromkeys(("mAP_l", "APl", "AP (L)"), "mAP_large"),
}
SIZES: Final = {"": "", "s": "_small", "m": "_medium", "l": "_large"}
PANOPTIC: Final = re.compile(r"[PSR]Q(_th|_st)?")
SEMANTIC: Final = re.compile(r"aAcc|m(IoU|Acc|Dice|Fscore|Precision|Recall)")
CLASSWISE: Final = "_precision"
HEADLINES: Final = ("mAP", "PQ", "mIoU")
TRAINING: Final = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "time": "perf/iter_time_s",
    "data_time": "perf/data_time_s",
}
MEBIBYTE: Final = float(1 << 20)


class Result(NamedTuple):
    """One metric of an evaluation, understood. `label` is "" or tells data sets or evaluators of one task apart."""

    own: str
    label: str
    task: str
    metric: str
    value: float


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among an evaluator's results: tensors and arrays of one element count, lists and texts do not."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        single = value.item() if getattr(value, "size", None) == 1 or _elements(value) == 1 else value
        if isinstance(single, Real):
            found[str(name)] = float(single)
    return found


def canonical_training(own: Mapping[str, float], images: int | None) -> dict[str, float]:
    """Canonical names of training scalars.

    Args:
        own: MMEngine's, with or without the prefix "train/".
        images: Images an iteration, over all processes; None if unknown.
    """
    canonical: dict[str, float] = {}
    for full_name, value in own.items():
        name = full_name.removeprefix("train/")
        if name in TRAINING:
            canonical[TRAINING[name]] = value
        elif "loss" in name:
            part = name.replace("loss_", "", 1) if "loss_" in name else name.replace("_loss", "", 1)
            canonical.setdefault(f"train/loss_{part}", value)
    if "memory" in own:
        canonical["perf/gpu_memory_bytes"] = own["memory"] * MEBIBYTE
    seconds = canonical.get("perf/iter_time_s")
    if images and seconds:
        canonical["perf/images_per_s"] = images / seconds
    return canonical


def canonical_evaluation(own: Mapping[str, float], split: str = "val") -> dict[str, float]:
    """Canonical names and units (0 to 1); -1 and NaN are MMDetection's "not applicable" and left out."""
    canonical: dict[str, float] = {}
    for result in _results(own):
        canonical.setdefault(f"{split}/{result.label}{result.task}/{result.metric}", result.value)
    return canonical


def headline(own: Mapping[str, float]) -> dict[str, float]:
    """The metrics by which a checkpoint can be best, boxes first, each under the canonical and MMDetection's name."""
    found: dict[str, float] = {}
    for result in sorted(_results(own), key=lambda result: result.task != "bbox"):
        if result.metric in HEADLINES:
            label = result.label.replace("/", ".")
            found.setdefault(f"{label}{result.task}.{result.metric}", result.value)
            found[result.own.replace("/", ".")] = own[result.own]
    return found


def per_class(own: Mapping[str, float], classes: Collection[str]) -> dict[str, list[tuple[str, float | None]]]:
    """Task to (category, AP from 0 to 1; None where not applicable), from `classwise=True`.

    Args:
        own: Metrics as MMDetection names them. Boxes and masks of one evaluator share the names of classes: the
            values are those of the metric that was evaluated last.
        classes: Names of the data set's classes, which may contain "/".
    """
    tasks = {result.own.rpartition("/")[0]: f"{result.label}{result.task}" for result in _results(own)
             if result.metric == "mAP"}  # fmt: skip
    known = set(classes)
    tables: dict[str, list[tuple[str, float | None]]] = {}
    for name, value in own.items():
        prefix, category = _category(name, known)
        if category is not None:
            applicable = math.isfinite(value) and value >= 0
            tables.setdefault(tasks.get(prefix, "bbox"), []).append((category, value if applicable else None))
    return tables


def _results(own: Mapping[str, float]) -> list[Result]:
    """Every metric that has a canonical name and a value."""
    understood = [(name, prefix, task, metric) for name in own for prefix, task, metric in _understand(name)]
    prefixes: dict[str, list[str]] = {}
    for _, prefix, task, _ in understood:
        if prefix not in prefixes.setdefault(task, []):
            prefixes[task].append(prefix)
    results = []
    for name, prefix, task, metric in understood:
        value = own[name] / 100 if task in {"panoptic", "semantic"} else own[name]
        if math.isfinite(value) and value >= 0:
            results.append(Result(name, _label(prefix, prefixes[task]), task, metric, value))
    return results


def _understand(name: str) -> Iterator[tuple[str, str, str]]:
    """Prefix, task and canonical metric of one name; nothing if there is no canonical one."""
    prefix, _, last = name.rpartition("/")
    if last.endswith(CLASSWISE):
        return
    evaluator = prefix.rpartition("/")[2]
    if (tasked := TASK_PREFIX.fullmatch(last)) is not None:
        yield prefix, tasked["task"], _metric(tasked["metric"]) or tasked["metric"]
    elif PANOPTIC.fullmatch(last):
        yield prefix, "panoptic", last
    elif SEMANTIC.fullmatch(last):
        yield prefix, "semantic", last
    elif evaluator == "coco" and (last == "AR" or last.startswith("AP")):  # MMPose
        if (metric := "AR_20" if last == "AR" else _metric(last)) is not None:
            yield prefix, "keypoints", metric
    elif (metric := _metric(last)) is not None:
        yield prefix, "segm" if evaluator == "cityscapes" else "bbox", metric


def _metric(name: str) -> str | None:
    recall = RECALL.fullmatch(name)
    if recall is not None:
        return f"AR{SIZES[recall['size']]}_{recall['number']}"
    return PRECISION.get(name)


def _label(prefix: str, prefixes: list[str]) -> str:
    """Nothing where one evaluator has the task; else what is different about its prefix."""
    if len(prefixes) == 1:
        return ""
    ends = {other.rpartition("/")[2] for other in prefixes}
    short = prefix.rpartition("/")[0] if len(ends) == 1 else prefix
    return f"{short}/" if short else ""


def _category(name: str, known: set[str]) -> tuple[str, str | None]:
    """Prefix and class of a classwise metric; a class that contains "/" is recognised by its whole name."""
    if not name.endswith(CLASSWISE):
        return "", None
    stem = name.removesuffix(CLASSWISE)
    parts = stem.split("/")
    for cut in range(len(parts)):
        if (category := "/".join(parts[cut:])) in known:
            return "/".join(parts[:cut]), category
    return ("/".join(parts[:-1]), parts[-1]) if not known else ("", None)


def _elements(value: Any) -> int | None:
    count = getattr(value, "numel", None)
    return int(count()) if callable(count) else None
