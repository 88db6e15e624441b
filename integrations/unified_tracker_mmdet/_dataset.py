"""The data set of an evaluation, as the collector of predictions wants it: ids, and what is true about an image."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from unified_tracker.predictions import Detections, SampleImage, Task
from unified_tracker.predictions._maps import detections_from_map, read_map
from unified_tracker.predictions._sample import ImageId
from unified_tracker_mmdet._detections import _label
from unified_tracker_mmdet._references import fetched_for, on_disk

ANNOTATION_FOLDERS: Final = {"annotations", "annotation", "ann", "labels", "ImageSets", "Main", ""}


class EvaluatedDataset:
    """A built data set of MMEngine, wrapped or not. Reads annotations only: no image, no pipeline.

    Every image has its `img_id`. Where two different images share one (data sets that were concatenated) or have none
    (semantic segmentation), the path of the image stands for it. Of a data set that is no `BaseDataset` nothing is
    known: the sample is chosen from the images that come.
    """

    def __init__(self, dataset: Any) -> None:
        """Read the ids. Blocking: the annotations of all images are unpacked once, 20 to 100 µs each."""
        while not hasattr(dataset, "get_data_info") and hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        self._dataset = dataset
        meta = getattr(dataset, "metainfo", None) or {}
        meta = meta[0] if isinstance(meta, list) else meta  # of data sets that were concatenated and differ
        leaf = next(leaves(dataset), dataset)
        self.name = _name(leaf, meta)
        self.classes: Sequence[str] = [str(name) for name in meta.get("classes") or ()]
        ids = getattr(leaf, "cat_ids", None)
        self.category_ids: Sequence[int] | None = (
            ids if isinstance(ids, list) and len(ids) == len(self.classes) else None
        )
        self.keypoint_names: Sequence[str] = _keypoint_names(meta)
        self.skeleton: Sequence[tuple[int, int]] = [(int(a), int(b)) for a, b in meta.get("skeleton_links") or ()]
        self._reduce_zero_label = bool(getattr(leaf, "reduce_zero_label", False))
        self._by_path = False
        self._index = self._read_ids() if hasattr(dataset, "get_data_info") else None

    def _read_ids(self) -> dict[ImageId, int]:
        by_id: dict[ImageId, int] = {}
        by_path: dict[ImageId, int] = {}
        paths: dict[ImageId, str] = {}
        unique = True
        for index in range(len(self._dataset)):
            info = self._dataset.get_data_info(index)
            image_id, path = info.get("img_id"), str(info.get("img_path", index))
            unique = unique and image_id is not None and paths.setdefault(_plain_id(image_id), path) == path
            by_path.setdefault(path, index)
            if unique:
                by_id.setdefault(_plain_id(image_id), index)
        self._by_path = not unique
        return by_id if unique else by_path

    def ids(self) -> Collection[ImageId] | None:
        """Of all images; None if nobody knows them."""
        return None if self._index is None else self._index.keys()

    def keep(self, chosen: Collection[ImageId]) -> None:
        """Forget the others."""
        if self._index is not None:
            self._index = {image_id: self._index[image_id] for image_id in chosen}

    def id_of(self, sample: Any) -> ImageId | None:
        """Of the image that a data sample is about; None if it does not say."""
        image_id = sample.get("img_path" if self._by_path else "img_id")
        return None if image_id is None else _plain_id(image_id)

    def image(self, image_id: ImageId) -> SampleImage:
        """The image, with what is true about it in pixels of the original. Maps are read from their files."""
        info = self._dataset.get_data_info((self._index or {})[image_id])
        path = on_disk(str(info["img_path"]))
        height, width = int(info.get("height") or 0), int(info.get("width") or 0)
        return SampleImage(image_id, height, width, path=path, truth=self._truth(info, height, width))

    def _truth(self, info: Mapping[str, Any], height: int, width: int) -> dict[Task, Detections]:
        truth: dict[Task, Detections] = {}
        instances = info.get("instances")
        segments = info.get("segments_info")
        map_path = info.get("seg_map_path")
        if instances is not None:
            truth["instances"] = _instances(instances, height, width)
        if segments is not None and map_path:
            labels = {int(segment["id"]): int(segment["category"]) for segment in segments}
            truth["panoptic"] = detections_from_map(read_map(on_disk(map_path)), labels.get)
        elif instances is None and map_path:
            truth["semantic"] = detections_from_map(
                self._labels(info, read_map(on_disk(map_path))), lambda value: _label(value, (), len(self.classes))
            )
        return truth

    def _labels(self, info: Mapping[str, Any], values: Any) -> Any:
        """The map with the labels of training, as `LoadAnnotations` makes it."""
        if label_map := info.get("label_map"):
            original = values.copy()
            for old, new in label_map.items():
                values[original == old] = new
        if self._reduce_zero_label or info.get("reduce_zero_label"):
            values = np.where(values == 0, 255, values - 1)
        return values


def _instances(instances: Sequence[Mapping[str, Any]], height: int, width: int) -> Detections:
    with_masks = any(instance.get("mask") for instance in instances)
    keypoints = [instance.get("keypoints") for instance in instances]
    return Detections(
        labels=[int(instance["bbox_label"]) for instance in instances],
        boxes=np.array([instance["bbox"] for instance in instances], np.float64).reshape(-1, 4),
        masks=[instance.get("mask") or {"size": [height, width], "counts": [height * width]} for instance in instances]
        if with_masks
        else None,
        keypoints=np.array(keypoints, np.float64).reshape(len(keypoints), -1, 3)
        if keypoints and all(each is not None for each in keypoints)
        else None,
        crowd=[bool(instance.get("ignore_flag") or instance.get("is_group_of")) for instance in instances],
    )


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets behind wrappers (`RepeatDataset`, `ConcatDataset`); nothing of None."""
    inner = getattr(dataset, "dataset", None)
    if inner is not None and not isinstance(inner, str):
        yield from leaves(inner)
    elif several := getattr(dataset, "datasets", None):
        for each in several:
            yield from leaves(each)
    elif dataset is not None:
        yield dataset


def name_of(dataset: Any) -> str:
    """What people call a data set: its configured name, the artifact or folder that it stands in, its class."""
    meta = getattr(dataset, "metainfo", None) or {}
    return _name(dataset, meta if isinstance(meta, Mapping) else {})


def _name(dataset: Any, meta: Mapping[str, Any]) -> str:
    if meta.get("dataset_name"):
        return str(meta["dataset_name"])
    for place in (getattr(dataset, "ann_file", None), getattr(dataset, "data_root", None)):
        if (found := fetched_for(str(place or ""))) is not None:
            return found.version.name
    for place in (getattr(dataset, "data_root", None), getattr(dataset, "ann_file", None)):
        parts = Path(str(place or "").partition("://")[2] or str(place or "")).parts
        folders = parts if place == getattr(dataset, "data_root", None) else parts[:-1]
        for folder in reversed(folders):
            if folder not in ANNOTATION_FOLDERS and not folder.startswith((".", "/")):
                return folder
    return type(dataset).__name__


def _keypoint_names(meta: Mapping[str, Any]) -> list[str]:
    names = meta.get("keypoint_id2name") or {}
    return [str(names[index]) for index in sorted(names)]


def _plain_id(image_id: Any) -> ImageId:
    return image_id if isinstance(image_id, str) else int(image_id)
