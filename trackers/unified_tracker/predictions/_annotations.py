"""Annotations: what is true about the sample, as a COCO data set that any tool reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np

from unified_tracker.predictions import _masks
from unified_tracker.predictions._detections import Task
from unified_tracker.predictions._sample import ImageId
from unified_tracker.predictions._sheets import Mask, Objects, SampleSheet

LONGEST_NAME: Final = 120


def image_names(sample: SampleSheet) -> dict[ImageId, str]:
    """Image id to a file name that is safe on every file system and unique in the sample."""
    names: dict[ImageId, str] = {}
    taken: set[str] = set()
    for image in sample.images:
        stem, dot, suffix = image.name.rpartition("/")[2].rpartition(".")
        stem, suffix = (stem, suffix) if dot else (suffix, "")
        if image.file.endswith(".npy"):
            suffix = "npy"
        stem = re.sub(r"[^\w\-]+", "_", stem)[:LONGEST_NAME] or "image"
        suffix = "." + re.sub(r"\W", "", suffix)[:8] if suffix else ""
        name, number = stem + suffix, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}_{number}{suffix}"
        taken.add(name.casefold())
        names[image.id] = name
    return names


def coco_annotations(sample: SampleSheet, names: dict[ImageId, str]) -> bytes:
    """The ground truth as COCO JSON.

    Args:
        sample: The sample.
        names: Image id to file name.

    Returns:
        "images", "categories" and "annotations" (bbox as x y width height in pixels; masks as polygons or compressed
        run-length encoding). Panoptic segments and semantic regions, where there are any, stand in "panoptic" and
        "semantic", in the form of annotations.
    """
    kept = [image for image in sample.images if image.truth is not None]
    content: dict[str, Any] = {
        "info": {"description": f"{sample.dataset}-val: the sample of validation images that evaluations are shown on"},
        "licenses": [],
        "images": [
            {"id": image.id, "file_name": names[image.id], "height": image.height, "width": image.width}
            for image in sample.images
        ],
        "categories": _categories(sample),
        "annotations": _annotations(sample, "instances"),
    }
    for task in ("panoptic", "semantic"):
        if any(image.truth and task in image.truth for image in kept):
            content[task] = _annotations(sample, task)
    return msgspec.json.encode(content)


def _categories(sample: SampleSheet) -> list[dict[str, Any]]:
    more: dict[str, Any] = {}
    if sample.keypoint_names:
        more = {"keypoints": sample.keypoint_names, "skeleton": [[a + 1, b + 1] for a, b in sample.skeleton]}
    pairs = zip(sample.category_ids, sample.classes, strict=True)
    return [{"id": number, "name": name, **more} for number, name in pairs]


def _annotations(sample: SampleSheet, task: Task) -> list[dict[str, Any]]:
    found = (
        {"image_id": image.id, **annotation}
        for image in sample.images
        if image.truth is not None and task in image.truth
        for annotation in _of_image(image.truth[task], sample.category_ids, image.height, image.width)
    )
    return [{"id": number, **annotation} for number, annotation in enumerate(found, 1)]


def _of_image(objects: Objects, categories: list[int], height: int, width: int) -> Iterator[dict[str, Any]]:
    boxes = None if objects.boxes is None else objects.boxes.values().astype(np.float64)
    crowd = None if objects.crowd is None else objects.crowd.values()
    keypoints = None if objects.keypoints is None else objects.keypoints.values()
    for index, label in enumerate(objects.labels.values().tolist()):
        annotation: dict[str, Any] = {"category_id": categories[label]}
        annotation["iscrowd"] = 0 if crowd is None else int(crowd[index])
        if boxes is not None:
            x1, y1, x2, y2 = boxes[index].tolist()
            annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        if objects.masks is not None:
            annotation |= _segmentation(objects.masks[index], height, width, with_box=boxes is None)
        if keypoints is not None:
            annotation["keypoints"] = keypoints[index].reshape(-1).tolist()
            annotation["num_keypoints"] = int((keypoints[index][:, 2] > 0).sum())
        yield annotation


def _segmentation(mask: Mask, height: int, width: int, *, with_box: bool) -> dict[str, Any]:
    encoded = _masks.encode([mask], height, width)
    own: Any = {"size": [height, width], "counts": mask.decode("ascii")} if isinstance(mask, bytes) else mask
    found: dict[str, Any] = {"segmentation": own, "area": float(_masks.areas(encoded)[0])}
    return found | ({"bbox": _masks.boxes(encoded)[0].tolist()} if with_box else {})
