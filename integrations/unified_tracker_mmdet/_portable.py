"""What an MMDetection model needs to be built and used elsewhere, besides its weights."""

from __future__ import annotations

import ast
from typing import Any, Final

from mmengine.config import Config
from mmengine.runner import Runner

from unified_tracker._console import say
from unified_tracker._detector import modules_beyond
from unified_tracker._mask import mask, mask_source, unsalted
from unified_tracker.training import Detector
from unified_tracker_mmdet import _facts
from unified_tracker_mmdet._dataset import leaves

CONFIG_FILE: Final = "config.py"
KNOWN: Final = ("mmcv", "mmdet", "mmengine", "torch", "torchvision")


def detector(runner: Runner) -> Detector | None:
    """The detector that a runner trains; None, said once, where its data set or configuration is too odd."""
    try:
        return _detector(runner)
    except Exception as error:  # noqa: BLE001 -- checkpoints are recorded in any case
        say(f"checkpoints are recorded without their configuration: {type(error).__name__}: {error}")
        return None


def _detector(runner: Runner) -> Detector:
    classes, category_ids = _classes(getattr(runner.train_dataloader, "dataset", None))
    return Detector(
        framework="mmdetection",
        config=CONFIG_FILE,
        text=_configuration(runner),
        classes=classes,
        category_ids=category_ids,
        imports=modules_beyond(KNOWN, [type(part).__module__ for part in runner.model.modules()]),
    )


def _configuration(runner: Runner) -> str:
    """The configuration as Python, without secrets, the same in every process.

    As the runner has dumped it, since printing takes a second. Masking its text can break it (`cls_token=True` looks
    like a secret there): then it is masked value by value and printed.
    """
    file = _facts.configuration_file(runner)
    if file is not None:
        text = unsalted(mask_source(file[1]))
        try:
            ast.parse(text)
        except SyntaxError:
            pass
        else:
            return text
    return unsalted(str(Config(_masked(_facts.configuration(runner))).pretty_text))


def _masked(value: Any, key: str = "") -> Any:
    """As `mask`, but tuples stay tuples: transforms refuse lists."""
    if isinstance(value, dict):
        return {name: _masked(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_masked(inner, key) for inner in value)
    return mask(value, key)


def _classes(dataset: Any) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Names and the data set's own ids, label by label."""
    meta: Any = getattr(dataset, "metainfo", None) or {}
    meta = meta[0] if isinstance(meta, list) else meta  # of data sets that were concatenated and differ
    given = meta.get("classes") or ()
    classes = (given,) if isinstance(given, str) else tuple(str(name) for name in given)
    ids = getattr(next(leaves(dataset), dataset), "cat_ids", None)
    known = isinstance(ids, (list, tuple)) and len(ids) == len(classes)
    return classes, tuple(int(each) for each in ids) if known else None  # type: ignore[union-attr]  # a sequence
