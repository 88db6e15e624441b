"""A registered data set, as the collector of predictions wants it: ids, and what is true about an image."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from unified_tracker._reference import parse
from unified_tracker.predictions import Detections, SampleImage, Task
from unified_tracker.predictions._maps import detections_from_map, read_map
from unified_tracker.predictions._sample import ImageId
from unified_tracker_detectron2._detections import PIXEL_CENTRE, ClassList


class CatalogDataset:
    """A data set of the `DatasetCatalog`, by its name. Reads annotations only, never an image.

    Attributes:
        registered: Its name in the catalog.
        name: What people call it: of an artifact, its name without scheme and alias.
        class_list: Things and stuff under one numbering.
        divisor: `label_divisor` of its panoptic maps.
    """

    def __init__(self, name: str) -> None:
        """Load it. Blocking: as long as Detectron2 itself takes at every evaluation (COCO val: a second)."""
        reference = parse(name)
        self.registered, self.name = name, name if reference is None else reference.name
        self._records: dict[ImageId, Mapping[str, Any]] = {}
        for record in DatasetCatalog.get(name):
            image_id = record.get("image_id", record.get("file_name"))
            self._records.setdefault(image_id, record)
        meta = MetadataCatalog.get(name)  # after loading, which fills it
        things, stuff = meta.get("thing_classes", None), meta.get("stuff_classes", None)
        named = things is not None or stuff is not None
        self.class_list = ClassList((things or ()) if named else self._numbers(), stuff or ())
        self.classes: Sequence[str] = self.class_list.names
        self.divisor = int(meta.get("label_divisor", 1000))
        self.keypoint_names: Sequence[str] = list(meta.get("keypoint_names", None) or ())
        self.category_ids: Sequence[int] | None = self._category_ids(meta)
        self.skeleton: Sequence[tuple[int, int]] = self._skeleton(meta)

    def ids(self) -> Collection[ImageId]:
        """Of all images."""
        return self._records.keys()

    def keep(self, chosen: Collection[ImageId]) -> None:
        """Forget the others."""
        self._records = {image_id: self._records[image_id] for image_id in chosen}

    def is_about(self, image_id: ImageId, given: Mapping[str, Any]) -> bool:
        """Whether what a loader gives is this image: data sets that are evaluated together may share ids."""
        record = self._records.get(image_id)
        return record is not None and given.get("file_name", record["file_name"]) == record["file_name"]

    def image(self, image_id: ImageId) -> SampleImage:
        """The image, with what is true about it. Maps are read from their files."""
        record = self._records[image_id]
        height, width = int(record.get("height") or 0), int(record.get("width") or 0)
        return SampleImage(image_id, height, width, path=record["file_name"], truth=self._truth(record, height, width))

    def _truth(self, record: Mapping[str, Any], height: int, width: int) -> dict[Task, Detections]:
        truth: dict[Task, Detections] = {}
        if (annotations := record.get("annotations")) is not None:
            truth["instances"] = _instances(annotations, height, width)
        if path := record.get("pan_seg_file_name"):
            segments = {int(segment["id"]): segment for segment in record["segments_info"]}
            labels = {
                number: self.class_list.of_segment(
                    int(segment["category_id"]), thing=bool(segment.get("isthing", True))
                )
                for number, segment in segments.items()
            }
            truth["panoptic"] = detections_from_map(
                read_map(PathManager.get_local_path(path)),
                labels.get,
                crowd=lambda number: bool(segments[number].get("iscrowd")),
            )
        if path := record.get("sem_seg_file_name"):
            truth["semantic"] = detections_from_map(
                read_map(PathManager.get_local_path(path)), self.class_list.of_stuff
            )
        return truth

    def _numbers(self) -> list[str]:
        """Names of classes that nobody has named."""
        found = (each["category_id"] for record in self._records.values() for each in record.get("annotations", ()))
        return [str(label) for label in range(max(found, default=-1) + 1)]

    def _category_ids(self, meta: Any) -> list[int] | None:
        """The data set's own ids, label by label; None unless all are known."""
        ids = {label: number for number, label in (meta.get("thing_dataset_id_to_contiguous_id", None) or {}).items()}
        for number, index in (meta.get("stuff_dataset_id_to_contiguous_id", None) or {}).items():
            label = self.class_list.of_stuff(index)
            if label is not None:
                ids.setdefault(label, number)
        labels = range(len(self.classes))
        return [int(ids[label]) for label in labels] if set(ids) == set(labels) else None

    def _skeleton(self, meta: Any) -> list[tuple[int, int]]:
        place = {name: index for index, name in enumerate(self.keypoint_names)}
        rules = meta.get("keypoint_connection_rules", None) or ()
        return [(place[rule[0]], place[rule[1]]) for rule in rules if rule[0] in place and rule[1] in place]


def _instances(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> Detections:
    with_masks = any(each.get("segmentation") for each in annotations)
    keypoints = [each.get("keypoints") for each in annotations]
    return Detections(
        labels=[int(each["category_id"]) for each in annotations],
        boxes=np.array([_box(each) for each in annotations], np.float64).reshape(-1, 4),
        masks=[
            each.get("segmentation") or {"size": [height, width], "counts": [height * width]} for each in annotations
        ]
        if with_masks
        else None,
        keypoints=_keypoints(keypoints) if keypoints and all(keypoints) else None,
        crowd=[bool(each.get("iscrowd", 0)) for each in annotations],
    )


def _box(annotation: Mapping[str, Any]) -> list[float]:
    return list(BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS))


def _keypoints(given: Sequence[Any]) -> Any:
    points = np.array(given, np.float64).reshape(len(given), -1, 3)
    points[..., :2] -= PIXEL_CENTRE
    return points
