"""What a runner is made from: data sets and weights, and whether their classes fit together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, checkpoint

from unified_tracker._class_lists import ClassList
from unified_tracker._origins import classes_of, dataset_input, weights_input
from unified_tracker.records import Input
from unified_tracker_mmdet import _references
from unified_tracker_mmdet._dataset import leaves, name_of

OWNERS: Final = {"train": "training", "val": "validation", "test": "test"}
ZOOS: Final[Mapping[str, Callable[[], Mapping[str, str]]]] = {
    "torchvision": checkpoint.get_torchvision_models,
    "modelzoo": checkpoint.get_torchvision_models,
    "open-mmlab": checkpoint.get_external_models,
    "openmmlab": checkpoint.get_external_models,
    "mmcls": checkpoint.get_mmcls_models,
}


def dataset_inputs(role: str, loader: Any) -> Iterator[Input]:
    """The records of the data sets behind a built loader. Annotation files are named, not read."""
    for dataset in leaves(getattr(loader, "dataset", None)):
        annotations = str(getattr(dataset, "ann_file", None) or "")
        root = str(getattr(dataset, "data_root", None) or "")
        prefixes = getattr(dataset, "data_prefix", None)
        images = [str(value) for value in prefixes.values() if value] if isinstance(prefixes, Mapping) else []
        text = next((place for place in (annotations, root, *images) if _references.fetched_for(place)), "")
        name = name_of(dataset)
        if found := _references.fetched_for(text):
            yield dataset_input(role, found.text, name)
        else:
            yield dataset_input(
                role,
                annotations or root or name,
                name,
                annotations=Path(annotations) if annotations and "://" not in annotations else None,
                images=images[0] if images else root,
            )


def weights_used(runner: Runner) -> Iterator[Input]:
    """What a training starts from: `load_from`, else what parts of the model are initialised with."""
    for text in [str(runner._load_from)] if runner._load_from else _pretrained(runner.cfg.get("model")):
        yield from _used(text, "weights")


def checkpoint_used(runner: Runner) -> Iterator[Input]:
    """What a runner evaluates that does not train."""
    if runner._load_from:
        yield from _used(str(runner._load_from), "checkpoint")


def classes_of_loader(role: str, loader: Any) -> ClassList:
    """Those of a built loader's data set."""
    dataset = getattr(loader, "dataset", None)
    meta = getattr(dataset, "metainfo", None) or {}
    meta = meta[0] if isinstance(meta, list) else meta
    first = next(leaves(dataset), None)
    owner = f"the {OWNERS[role]} set {name_of(first)!r}" if first is not None else f"the {OWNERS[role]} set"
    return ClassList(owner, tuple(str(name) for name in meta.get("classes") or ()))


def classes_of_annotations(loader: Any) -> Iterator[ClassList]:
    """Those that data sets by reference bring along: a configuration may still name others, or none."""
    for dataset in leaves(getattr(loader, "dataset", None)):
        found = _references.fetched_for(str(getattr(dataset, "ann_file", None) or ""))
        if found is not None and (names := classes_of(found.text)):
            yield ClassList(f"the annotations of {found.text}", names)


def classes_of_model(model: Any) -> ClassList:
    """How many things a model tells apart."""
    while is_model_wrapper(model):
        model = model.module
    head = getattr(getattr(model, "roi_head", model), "bbox_head", None)
    if isinstance(head, torch.nn.ModuleList) and len(head):  # of a cascade
        head = head[0]
    count = getattr(head, "num_classes", None)
    return ClassList("the model", count=count if isinstance(count, int) else None)


def classes_of_checkpoint(text: str, loaded: Mapping[str, Any]) -> ClassList:
    """Those of a checkpoint.

    Args:
        text: Where it came from.
        loaded: Its `meta`.
    """
    names = (loaded.get("dataset_meta") or {}).get("classes") or classes_of(text)
    return ClassList(f"the checkpoint {text}", tuple(str(name) for name in names or ()))


def _used(text: str, role: str) -> Iterator[Input]:
    if not _references.is_reference(text) or _references.was_loaded(text):
        yield weights_input(text, role, _file_of(text))


def _pretrained(config: Any) -> Iterator[str]:
    """Checkpoints that `init_cfg` names, anywhere in a model's configuration; each once."""
    found: dict[str, None] = {}
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            if part.get("type") == "Pretrained" and part.get("checkpoint"):
                found[str(part["checkpoint"])] = None
            waiting += part.values()
        elif isinstance(part, (list, tuple)):
            waiting += part
    return iter(found)


def _file_of(text: str) -> Path | None:
    """Where weights lie on this machine: a local file, or what PyTorch's hub has downloaded. Downloads nothing."""
    scheme, separator, name = text.partition("://")
    if not separator:
        return Path(text)
    with contextlib.suppress(Exception):  # a model zoo is a file that MMEngine brings along, or does not
        if scheme in ZOOS:
            text = ZOOS[scheme]()[name]
        return Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlsplit(text).path).name
    return None
