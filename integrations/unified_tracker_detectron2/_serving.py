"""A Detectron2 checkpoint as a detector: bytes of a picture in, what is on it out.

This file is copied into every tracked model, as `framework.py` beside its weights: it imports Detectron2 and nothing
of the tracker, so that whoever uses the model needs neither the tracker nor the training's code.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import detection_utils, transforms
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from PIL import Image, ImageOps


class FrameworkDetector:
    """The model, built and loaded. Not for several threads at once."""

    def __init__(self, config: Path, weights: Path, imports: Iterable[str] = (), device: str | None = None) -> None:
        """Build it.

        Args:
            config: YAML, all of it in one file.
            weights: A checkpoint of the training.
            imports: Modules that register parts of the model.
            device: "cpu", "cuda:1"; None takes the first GPU if there is one.

        Blocking: seconds.
        """
        for module in imports:
            importlib.import_module(module)
        cfg = get_cfg()
        cfg.set_new_allowed(True)  # nodes of projects and of the training
        # Not `merge_from_file`: it takes YAML that runs code.
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(config.read_text(encoding="utf-8"))))
        cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = build_model(cfg).eval()
        _Checkpointer(self._model).load(str(weights))
        sizes = [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST]
        self._resize = transforms.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TEST)
        self._format = cfg.INPUT.FORMAT

    def detect(self, content: bytes) -> list[dict[str, Any]]:
        """What is on a picture, as the model's own evaluation sees it.

        Args:
            content: Of an image file: JPEG, PNG, whatever Pillow reads.

        Returns:
            COCO results: "bbox" (x, y, width, height in pixels of the picture), "score", "category_id" (the label,
            counted from 0), where the model has them "segmentation" (run lengths) and "keypoints".
        """
        with Image.open(io.BytesIO(content)) as picture:
            pixels = detection_utils.convert_PIL_to_numpy(ImageOps.exif_transpose(picture), self._format)
        height, width = pixels.shape[:2]
        resized = self._resize.get_transform(pixels).apply_image(pixels)
        image = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        with torch.no_grad():
            found = self._model([{"image": image, "height": height, "width": width}])[0]
        if "instances" not in found:
            raise ValueError(f"the model finds no instances, but {', '.join(found)}")
        rows: list[dict[str, Any]] = instances_to_coco_json(found["instances"].to("cpu"), 0)
        return rows


class _Checkpointer(DetectionCheckpointer):
    """Loads weights without running what may stand between them, where the file lets it."""

    def _torch_load(self, f: str) -> Any:
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # objects of the training's hooks, which only pickle brings back
            return torch.load(f, map_location="cpu", weights_only=False)  # as Detectron2 does
