"""What a model of the OpenMMLab family has found, translated: a data sample in, detections out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from unified_tracker.predictions import Detections, Task
from unified_tracker.predictions._maps import detections_from_map
from unified_tracker.predictions._sheets import plain

INSTANCE_OFFSET: Final = 1000  # of mmdet.evaluation: a value of a panoptic map is class + 1000 * instance
VOID: Final = 0  # what `CocoPanopticMetric` writes over the void of the very map that hooks are given


def detections_from_sample(sample: Any, classes: int | None = None) -> dict[Task, Detections]:
    """What a `DetDataSample` predicts, by task; also what MMSegmentation's, MMPose's and MMYOLO's do.

    Args:
        sample: With `pred_instances`, `pred_panoptic_seg`, `pred_sem_seg`, or some of them, on any device, in pixels of
            the original image.
        classes: How many classes there are: in maps, labels from there on are void. None: no label is.
    """
    found: dict[Task, Detections] = {}
    if (instances := sample.get("pred_instances")) is not None:
        found["instances"] = _instances(instances)
    if (panoptic := sample.get("pred_panoptic_seg")) is not None:
        void = {classes, panoptic.get("ignore_index")}
        found["panoptic"] = detections_from_map(
            _map(panoptic), lambda value: _panoptic_label(value, void, classes), scores={}
        )
    if (semantic := sample.get("pred_sem_seg")) is not None:
        void = {semantic.get("ignore_index")}
        found["semantic"] = detections_from_map(_map(semantic), lambda value: _label(value, void, classes), scores={})
    return found


def _instances(instances: Any) -> Detections:
    boxes = instances.get("bboxes")
    boxes = getattr(boxes, "tensor", boxes)  # of MMDetection's `BaseBoxes`
    scores = instances.get("scores", instances.get("bbox_scores"))
    labels = instances.get("labels")
    return Detections(
        labels=np.zeros(len(instances), np.int32) if labels is None else labels,  # MMPose: one class of things
        boxes=boxes,
        scores=scores,
        masks=_masks(instances.get("masks")),
        keypoints=_keypoints(instances.get("keypoints"), instances.get("keypoint_scores")),
    )


def _masks(masks: Any) -> Any:
    """Bitmaps on the CPU, copied from their device at once; run-length encodings and polygons as they are."""
    if masks is None or isinstance(masks, (list, tuple)):
        return masks
    return plain(getattr(masks, "masks", masks))  # of `BitmapMasks`


def _keypoints(keypoints: Any, scores: Any) -> Any:
    if keypoints is None:
        return None
    points = plain(keypoints)
    if scores is not None and points.ndim == 3 and points.shape[2] == 2:
        points = np.concatenate([points, plain(scores)[..., None]], axis=2)
    return points


def _map(pixels: Any) -> Any:
    values = plain(pixels.get("sem_seg", pixels.get("data")))
    return values[0] if values.ndim == 3 else values


def _panoptic_label(value: int, void: Iterable[Any], classes: int | None) -> int | None:
    return None if value == VOID else _label(value % INSTANCE_OFFSET, void, classes)


def _label(label: int, void: Iterable[Any], classes: int | None) -> int | None:
    return None if label in void or label < 0 or (classes is not None and label >= classes) else label
