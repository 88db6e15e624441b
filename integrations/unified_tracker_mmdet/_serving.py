"""An MMDetection checkpoint as a detector: bytes of a picture in, what is on it out.

This file is copied into every tracked model, as `framework.py` beside its weights: it imports MMDetection and nothing
of the tracker, so that whoever uses the model needs neither the tracker nor the training's code.
"""

from __future__ import annotations

import importlib
import pickle
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmdet.apis import init_detector
from mmdet.structures.mask import encode_mask_results
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.runner import load_state_dict
from mmengine.utils import import_modules_from_strings

TRACKER = "unified_tracker_mmdet"  # a hook of the training, of no use here


class FrameworkDetector:
    """The model, built and loaded. Not for several threads at once."""

    def __init__(self, config: Path, weights: Path, imports: Iterable[str] = (), device: str | None = None) -> None:
        """Build it.

        Args:
            config: Python, as a runner dumps it.
            weights: A checkpoint of the training.
            imports: Modules that register parts of the model.
            device: "cpu", "cuda:1"; None takes the first GPU if there is one.

        Blocking: seconds.
        """
        for module in imports:
            importlib.import_module(module)
        cfg = Config.fromfile(config, import_custom_modules=False)
        custom = cfg.get("custom_imports") or {}
        names = [custom["imports"]] if isinstance(custom.get("imports"), str) else custom.get("imports") or []
        # A training imports more than the model needs: what is really missing is named when the model is built.
        import_modules_from_strings([name for name in names if name != TRACKER], allow_failed_imports=True)
        with warnings.catch_warnings(record=True):  # that without a checkpoint it takes the classes of COCO
            self._model = init_detector(cfg, None, palette="random", device=device or _device())
        load_state_dict(self._model, _weights(weights))  # says what does not fit, as `init_detector` does
        self._pipeline = Compose(get_test_pipeline_cfg(cfg))

    def detect(self, content: bytes) -> list[dict[str, Any]]:
        """What is on a picture, as the model's own test pipeline sees it.

        Args:
            content: Of an image file, of a kind that the pipeline reads.

        Returns:
            COCO results: "bbox" (x, y, width, height in pixels of the picture), "score", "category_id" (the label,
            counted from 0), where the model has them "segmentation" (run lengths).
        """
        with tempfile.NamedTemporaryFile() as file:  # pipelines read files, each with the decoder that it names
            file.write(content)
            file.flush()
            data = self._pipeline({"img_path": file.name, "img_id": 0})
        batch = {"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}
        with torch.no_grad():
            (sample,) = self._model.test_step(batch)
        if "pred_instances" not in sample:
            raise ValueError(f"the model finds no instances, but {', '.join(sample.keys())}")
        found = sample.pred_instances.cpu()
        rows = [
            {
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
                "category_id": label,
            }
            for (left, top, right, bottom), score, label in zip(
                found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ]
        if "masks" in found:
            for row, mask in zip(rows, encode_mask_results(torch.as_tensor(found.masks).numpy()), strict=True):
                row["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")}
        return rows


def _device() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _weights(path: Path) -> dict[str, Any]:
    """The parameters of a checkpoint, without running what may stand beside them, where the file lets it."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # MMEngine keeps its own objects beside the weights: histories of scalars
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)  # as MMEngine does
    state = checkpoint.get("state_dict", checkpoint)
    return {name.removeprefix("module."): value for name, value in state.items()}
