"""What a Detectron2 model has found, translated: the output for one image in, detections out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from unified_tracker.predictions import Detections, Task
from unified_tracker.predictions._maps import detections_from_map
from unified_tracker.predictions._sheets import plain

PIXEL_CENTRE: Final = 0.5  # Detectron2 adds it to keypoints that it reads, and takes it from those that it writes


class ClassList:
    """Things and stuff in one list: Detectron2 numbers both from 0. What has the same name is the same class.

    Attributes:
        names: Things, then the stuff that is no thing.
        stuff: Index into Detectron2's stuff classes to label.
    """

    def __init__(self, things: Sequence[str], stuff: Sequence[str]) -> None:
        self.names = [str(name) for name in things]
        labels = {name: label for label, name in reversed(list(enumerate(self.names)))}
        self.stuff: list[int] = []
        for name in map(str, stuff):
            if name not in labels:
                labels[name] = len(self.names)
                self.names.append(name)
            self.stuff.append(labels[name])

    def of_stuff(self, index: int) -> int | None:
        """Label of a stuff class; None for what is none, such as "ignore"."""
        return self.stuff[index] if 0 <= index < len(self.stuff) else None

    def of_segment(self, category: int, *, thing: bool) -> int | None:
        """Label of a panoptic segment."""
        return category if thing else self.of_stuff(category)


def detections_from_instances(instances: Any) -> Detections:
    """What an `Instances` predicts: classes, scores, boxes, masks and keypoints, those that it has.

    Args:
        instances: As a model in evaluation mode returns them, in pixels of the original image, on any device. Keypoints
            are shifted by half a pixel, as in Detectron2's own results: COCO means pixel indices.
    """
    masks = _field(instances, "pred_masks")
    keypoints = _field(instances, "pred_keypoints")
    if keypoints is not None:
        keypoints = plain(keypoints).copy()
        keypoints[..., :2] -= PIXEL_CENTRE
    return Detections(
        labels=instances.pred_classes,
        boxes=_field(instances, "pred_boxes"),
        scores=instances.scores,
        masks=masks if masks is None or isinstance(masks, (list, tuple)) else plain(masks),
        keypoints=keypoints,
    )


def detections_from_output(
    output: Mapping[str, Any], classes: ClassList, divisor: int = 1000
) -> dict[Task, Detections]:
    """What a model returns for one image, by task.

    Args:
        output: With "instances", "panoptic_seg", "sem_seg", or some of them.
        classes: Of the data set.
        divisor: `label_divisor` of the data set, for panoptic maps without a list of segments.
    """
    found: dict[Task, Detections] = {}
    if "instances" in output:
        found["instances"] = detections_from_instances(output["instances"])
    if "panoptic_seg" in output:
        values, segments = output["panoptic_seg"]
        label_of, scores = _segments(segments, classes, divisor)
        found["panoptic"] = detections_from_map(values, label_of, scores=scores)
    if "sem_seg" in output:
        found["semantic"] = detections_from_map(output["sem_seg"].argmax(dim=0), classes.of_stuff, scores={})
    return found


def _segments(
    segments: Sequence[Mapping[str, Any]] | None, classes: ClassList, divisor: int
) -> tuple[Callable[[int], int | None], dict[int, float]]:
    """What the values of a panoptic map mean, and their scores where the model has any."""
    if segments is None:  # the values say it: category * divisor + number, and -1 is void
        return lambda value: classes.of_stuff(value // divisor) if value >= 0 else None, {}
    labels = {
        int(segment["id"]): classes.of_segment(int(segment["category_id"]), thing=bool(segment["isthing"]))
        for segment in segments
    }
    return labels.get, {int(each["id"]): float(each["score"]) for each in segments if each.get("score") is not None}


def _field(instances: Any, name: str) -> Any:
    """A field of instances; the tensor in it, where it is one of Detectron2's structures."""
    value = instances.get(name) if instances.has(name) else None
    return getattr(value, "tensor", value)
