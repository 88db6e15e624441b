"""What a training or an evaluation is made from: data sets and weights, and whether their classes fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import Detectron2Handler, PathManager
from torch.nn.parallel import DataParallel, DistributedDataParallel

from unified_tracker._class_lists import ClassList
from unified_tracker._origins import classes_of, dataset_input, weights_input
from unified_tracker._reference import parse
from unified_tracker.records import Input
from unified_tracker_detectron2._prepare import was_loaded

Names = Sequence[str]
OWNERS: Final = {"train": "training", "val": "validation", "test": "test"}


def dataset_inputs(role: str, names: Names) -> Iterator[Input]:
    """The records of data sets of the catalog. Annotation files are named, not read."""
    for name in names:
        meta = MetadataCatalog.get(name)
        annotations, images = meta.get("json_file", None), meta.get("image_root", None)
        yield dataset_input(
            role,
            name,
            name,
            annotations=Path(annotations) if annotations else None,
            images=str(images) if images else None,
        )


def weights_used(text: str, role: str) -> Iterator[Input]:
    """The record of weights, if they are used: of a reference it is known whether anything has asked for it."""
    text = text.partition("?")[0]  # "?matching_heuristics=True" belongs to the checkpointer
    if text and (parse(text) is None or was_loaded(text)):
        yield weights_input(text, role, _file_of(text))


def class_lists(role: str, names: Names) -> Iterator[tuple[ClassList, ClassList]]:
    """Things and stuff of data sets, as far as they are known by now: most are only when the data set is loaded."""
    for name in names:
        meta = MetadataCatalog.get(name)
        owner = f"the {OWNERS[role]} set {name!r}"
        yield (
            ClassList(owner, tuple(meta.get("thing_classes", None) or ())),
            ClassList(owner, tuple(meta.get("stuff_classes", None) or ())),
        )


def classes_of_weights(text: str) -> ClassList:
    """Those of the tracked checkpoint that weights come from."""
    return ClassList(f"the checkpoint {text}", classes_of(text))


def classes_of_model(model: Any, config: Any) -> tuple[ClassList, ClassList]:
    """How many things, and how much stuff, a model tells apart.

    Args:
        model: As built; what wraps it is looked through.
        config: Says it of semantic segmentation, where it is a `CfgNode`.
    """
    while isinstance(model, (DataParallel, DistributedDataParallel)):
        model = model.module
    things = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    stuff = None
    if getattr(model, "sem_seg_head", None) is not None and isinstance(config, CfgNode):
        stuff = config.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return (
        ClassList("the model", count=things if isinstance(things, int) else None),
        ClassList("the model", count=stuff),
    )


def _file_of(text: str) -> Path | None:
    """Where weights lie on this machine: a local file, or what `PathManager` has downloaded. Downloads nothing."""
    if "://" not in text:
        return Path(text)
    url = text.replace(Detectron2Handler.PREFIX, Detectron2Handler.S3_DETECTRON2_PREFIX, 1)
    for handler in getattr(PathManager, "_path_handlers", {}).values():
        cached = getattr(handler, "cache_map", {}).get(url)
        if cached:
            return Path(cached)
    return None
