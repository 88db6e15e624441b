"""What a Detectron2 model needs to be built and used elsewhere, besides its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import detectron2.modeling
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from fvcore.common.registry import Registry

from unified_tracker._console import say
from unified_tracker._detector import modules_beyond
from unified_tracker.training import Detector
from unified_tracker_detectron2._config import masked_yaml

CONFIG_FILE: Final = "config.yaml"
KNOWN: Final = ("detectron2", "fvcore", "torch", "torchvision")


def detector(cfg: Any, model: Any) -> Detector | None:
    """The detector that a configuration trains; None for what is no `CfgNode` (LazyConfig, plain loops).

    Args:
        cfg: The configuration.
        model: The model that was built from it, or None.
    """
    if not isinstance(cfg, CfgNode):
        return None
    try:
        return _detector(cfg, model)
    except Exception as error:  # noqa: BLE001 -- whatever is odd in it: checkpoints are recorded in any case
        say(f"checkpoints are recorded without their configuration: {type(error).__name__}: {error}")
        return None


def _detector(cfg: CfgNode, model: Any) -> Detector:
    classes, category_ids = _classes(cfg)
    text = masked_yaml(cfg)
    return Detector(
        framework="detectron2",
        config=CONFIG_FILE,
        text=text,
        classes=classes,
        category_ids=category_ids,
        imports=modules_beyond(KNOWN, [*_modules_of(model), *_registered(text)]),
    )


def _classes(cfg: CfgNode) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Names and ids of the things of the training sets; loading them has filled the catalog."""
    for name in cfg.DATASETS.TRAIN:
        meta = MetadataCatalog.get(name)
        classes = tuple(str(each) for each in meta.get("thing_classes", None) or ())
        if classes:
            labels = {int(label): int(own) for own, label in _contiguous(meta).items()}
            known = set(labels) == set(range(len(classes)))
            return classes, tuple(labels[label] for label in range(len(classes))) if known else None
    return (), None


def _contiguous(meta: Any) -> dict[int, int]:
    return meta.get("thing_dataset_id_to_contiguous_id", None) or {}


def _modules_of(model: Any) -> list[str]:
    return [type(part).__module__ for part in model.modules()] if hasattr(model, "modules") else []


def _registered(text: str) -> Iterator[str]:
    """Modules of what the configuration names and Detectron2's registries know."""
    for registry in vars(detectron2.modeling).values():
        if isinstance(registry, Registry):
            yield from (part.__module__ for name, part in registry if f" {name}\n" in text)
