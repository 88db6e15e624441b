"""Real data sets and data samples of MMDetection, translated without a training."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet")

import torch
from mmdet.datasets import BaseSegDataset, CocoDataset, CocoPanopticDataset, XMLDataset
from mmdet.datasets.dataset_wrappers import ConcatDataset
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import ClassBalancedDataset, RepeatDataset
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from pycocotools import mask as coco

from unified_tracker.predictions import Detections, SampleImage
from unified_tracker.predictions._sheets import pack
from unified_tracker_mmdet import detections_from_sample
from unified_tracker_mmdet._dataset import EvaluatedDataset

CLASSES = ("circle", "square", "triangle")


def coco_file(path: Path, annotations: list[dict[str, Any]], images: int = 2, categories: int = 3, **more: Any) -> str:
    names = CLASSES if categories == 3 else tuple(f"c{i}" for i in range(categories))
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 10, "width": 20} for i in range(1, images + 1)],
        "categories": [{"id": 2 * i + 3, "name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "area": 12, "iscrowd": 0, **each} for i, each in enumerate(annotations, 1)],
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def coco_dataset(path: Path, annotations: list[dict[str, Any]], **given: Any) -> CocoDataset:
    arguments = {"data_prefix": {"img": str(path.parent)}, "metainfo": {"classes": CLASSES}, "test_mode": True}
    return CocoDataset(ann_file=coco_file(path, annotations), **{**arguments, **given})


def instances(image: SampleImage) -> Detections:
    assert isinstance(image.truth, dict)
    return image.truth["instances"]


BOX = {"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}


def test_detection_only_and_empty_images(tmp_path: Path) -> None:
    dataset = EvaluatedDataset(coco_dataset(tmp_path / "balloon" / "annotations" / "val.json", [BOX]))
    assert (dataset.name, dataset.classes, dataset.category_ids) == ("balloon", list(CLASSES), [3, 5, 7])
    first, second = (instances(dataset.image(image_id)) for image_id in dataset.ids())
    assert first.labels == [1]
    assert first.boxes.tolist() == [[1, 2, 4, 6]]
    assert (first.masks, first.keypoints, first.crowd) == (None, None, [False])
    assert len(pack(second, 10, 20, 3, predicted=False)) == 0


def test_polygons_and_run_lengths_and_none_stand_side_by_side(tmp_path: Path) -> None:
    polygon, counts = [[1, 2, 4, 2, 4, 6]], [10, 5, 185]
    crowd = {**BOX, "iscrowd": 1, "segmentation": {"size": [10, 20], "counts": counts}}
    annotations = [{**BOX, "segmentation": polygon}, crowd, BOX]
    truth = instances(EvaluatedDataset(coco_dataset(tmp_path / "val.json", annotations)).image(1))
    packed = pack(truth, 10, 20, 3, predicted=False)
    assert packed.masks is not None and packed.crowd is not None
    assert packed.masks[0] == polygon
    decoded = [coco.decode({"size": [10, 20], "counts": each}).sum() for each in packed.masks[1:]]
    assert decoded == [5, 0]
    assert packed.crowd.values().tolist() == [False, True, False]


def test_many_classes(tmp_path: Path) -> None:
    """As many as LVIS has: a label does not fit into a byte."""
    box = {**BOX, "category_id": 2 * 1202 + 3}
    names = tuple(f"c{i}" for i in range(1203))
    file = coco_file(tmp_path / "lvis.json", [box], categories=1203)
    given = {"data_prefix": {"img": ""}, "metainfo": {"classes": names}, "test_mode": True}
    dataset = CocoDataset(ann_file=file, **given)
    evaluated = EvaluatedDataset(dataset)
    packed = pack(instances(evaluated.image(1)), 10, 20, len(evaluated.classes), predicted=False)
    assert packed.labels.values().tolist() == [1202]


def test_voc_has_ids_that_are_strings_and_difficult_objects(tmp_path: Path) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / "VOC" / folder).mkdir(parents=True)
    (tmp_path / "VOC" / "ImageSets" / "Main" / "val.txt").write_text("0017_é\n")
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>8</xmax><ymax>9</ymax></bndbox>"
    objects = "".join(f"<object><name>square</name><difficult>{hard}</difficult>{box}</object>" for hard in (0, 1))
    (tmp_path / "VOC" / "Annotations" / "0017_é.xml").write_text(
        f"<annotation><size><width>20</width><height>10</height></size>{objects}</annotation>", encoding="utf-8"
    )
    dataset = XMLDataset(
        ann_file="ImageSets/Main/val.txt",
        data_root=str(tmp_path / "VOC"),
        data_prefix={"sub_data_root": ""},
        metainfo={"classes": CLASSES},
        test_mode=True,
    )
    evaluated = EvaluatedDataset(dataset)
    assert list(evaluated.ids()) == ["0017_é"]
    image = evaluated.image("0017_é")
    assert (evaluated.name, image.height, image.width, evaluated.category_ids) == ("VOC", 10, 20, None)
    truth = instances(image)
    assert (truth.labels, truth.boxes.tolist(), truth.crowd) == ([1, 1], [[1, 2, 7, 8]] * 2, [False, True])


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    inner = coco_dataset(tmp_path / "val.json", [BOX])
    wrapped = [RepeatDataset(inner, 3), ClassBalancedDataset(inner, 1e-3), ConcatDataset([inner])]
    for dataset in wrapped:
        evaluated = EvaluatedDataset(dataset)
        assert set(evaluated.ids()) == {1, 2}
        assert instances(evaluated.image(1)).labels == [1]
        assert evaluated.category_ids == [3, 5, 7]


def test_data_sets_that_share_ids_are_told_apart_by_their_images(tmp_path: Path) -> None:
    first = coco_dataset(tmp_path / "a" / "val.json", [BOX])
    second = coco_dataset(tmp_path / "b" / "val.json", [{**BOX, "category_id": 3}])
    evaluated = EvaluatedDataset(ConcatDataset([first, second]))
    paths = [f"{tmp_path}/{folder}/{number}.jpg" for folder in "ab" for number in (1, 2)]
    assert list(evaluated.ids()) == paths
    sample = DetDataSample(metainfo={"img_id": 1, "img_path": paths[2]})
    assert evaluated.id_of(sample) == paths[2]
    assert instances(evaluated.image(paths[2])).labels == [0]


def test_panoptic_data_set(tmp_path: Path) -> None:
    values = np.zeros((10, 20, 3), np.uint8)
    values[:4, :, 0], values[6:, :, 1] = 9, 2  # ids 9 and 512
    (tmp_path / "seg").mkdir()
    Image.fromarray(values).save(tmp_path / "seg" / "1.png")
    segments = [
        {"id": 9, "category_id": 3, "bbox": [0, 0, 20, 4], "area": 80, "iscrowd": 0},
        {"id": 512, "category_id": 5, "bbox": [0, 6, 20, 4], "area": 80, "iscrowd": 0},
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 10, "width": 20}],
        "categories": [{"id": 3, "name": "thing", "isthing": 1}, {"id": 5, "name": "stuff", "isthing": 0}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    dataset = CocoPanopticDataset(
        ann_file=str(tmp_path / "panoptic.json"),
        data_prefix={"img": str(tmp_path), "seg": str(tmp_path / "seg")},
        metainfo={"classes": ("thing", "stuff"), "thing_classes": ("thing",), "stuff_classes": ("stuff",)},
        test_mode=True,
    )
    image = EvaluatedDataset(dataset).image(1)
    assert isinstance(image.truth, dict)
    assert image.truth["instances"].labels == [0]
    packed = pack(image.truth["panoptic"], 10, 20, 2, predicted=False)
    assert packed.labels.values().tolist() == [0, 1]
    assert packed.masks is not None
    assert [coco.toBbox({"size": [10, 20], "counts": each}).tolist() for each in packed.masks] == [
        [0, 0, 20, 4],
        [0, 6, 20, 4],
    ]


@pytest.mark.parametrize("reduce", [False, True])
def test_semantic_data_set_has_no_ids(tmp_path: Path, reduce: bool) -> None:
    values = np.zeros((10, 20), np.uint8)
    values[:4], values[4:6] = 2, 255
    for folder in ("img", "ann"):
        (tmp_path / folder).mkdir()
    Image.fromarray(values).save(tmp_path / "ann" / "x.png")
    (tmp_path / "img" / "x.jpg").write_bytes(b"")
    dataset = BaseSegDataset(
        data_prefix={"img_path": str(tmp_path / "img"), "seg_map_path": str(tmp_path / "ann")},
        metainfo={"classes": CLASSES},
        test_mode=True,
    )
    dataset.reduce_zero_label = reduce
    evaluated = EvaluatedDataset(dataset)
    assert list(evaluated.ids()) == [str(tmp_path / "img" / "x.jpg")]
    image = evaluated.image(str(tmp_path / "img" / "x.jpg"))
    assert isinstance(image.truth, dict)
    assert image.truth["semantic"].labels.tolist() == ([1] if reduce else [0, 2])


def test_instances_of_a_data_sample() -> None:
    bitmaps = torch.zeros(2, 10, 20, dtype=torch.bool)
    bitmaps[0, 2:5, 3:9] = True
    boxes = torch.tensor([[3.0, 2, 9, 5], [0, 0, 1, 1]])
    predicted = InstanceData(
        bboxes=HorizontalBoxes(boxes), scores=torch.tensor([0.9, 0.1]), labels=torch.tensor([2, 0]), masks=bitmaps
    )
    sample = DetDataSample(pred_instances=predicted)
    packed = pack(detections_from_sample(sample)["instances"], 10, 20, 3, predicted=True)
    assert packed.boxes is not None and packed.scores is not None and packed.masks is not None
    assert packed.boxes.values().tolist() == boxes.tolist()
    assert packed.scores.values().dtype == np.float32
    assert packed.scores.values().tolist() == predicted.scores.tolist()
    assert [int(coco.area({"size": [10, 20], "counts": each})) for each in packed.masks] == [18, 0]
    assert detections_from_sample(pickle.loads(pickle.dumps(sample))).keys() == {"instances"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    predicted = InstanceData(bboxes=torch.ones(1, 4, dtype=dtype), scores=torch.full((1,), 0.5, dtype=dtype))
    predicted.labels = torch.zeros(1, dtype=torch.long)
    found = detections_from_sample(DetDataSample(pred_instances=predicted))["instances"]
    packed = pack(found, 10, 20, 3, predicted=True)
    assert packed.scores is not None
    assert packed.scores.values().tolist() == [0.5]


def test_run_lengths_instead_of_bitmaps_and_no_instance_at_all() -> None:
    encoded = coco.encode(np.asfortranarray(np.eye(10, 20, dtype=np.uint8)))
    one = InstanceData(bboxes=torch.ones(1, 4), scores=torch.ones(1), labels=torch.zeros(1, dtype=int), masks=[encoded])
    none = InstanceData(
        bboxes=torch.ones(0, 4), scores=torch.ones(0), labels=torch.zeros(0, dtype=int), masks=torch.zeros(0, 10, 20)
    )
    found = [detections_from_sample(DetDataSample(pred_instances=each))["instances"] for each in (one, none)]
    packed = [pack(each, 10, 20, 3, predicted=True) for each in found]
    assert [each.masks for each in packed] == [[encoded["counts"]], []]


def test_panoptic_and_semantic_maps_of_a_data_sample() -> None:
    panoptic = torch.full((10, 20), 3)  # the number of classes: void
    panoptic[:2], panoptic[2:4], panoptic[4:5], panoptic[5:6] = 1002, 2002, 1, 0
    semantic = torch.zeros(1, 10, 20, dtype=torch.long)
    semantic[:, 3:], semantic[:, 8:] = 2, 255
    sample = DetDataSample(
        pred_panoptic_seg=PixelData(sem_seg=panoptic[None]), pred_sem_seg=PixelData(sem_seg=semantic)
    )
    found = detections_from_sample(sample, 3)
    assert found["panoptic"].labels.tolist() == [1, 2, 2]
    assert found["panoptic"].scores.tolist() == [1, 1, 1]
    assert found["semantic"].labels.tolist() == [0, 2]
    assert [int(coco.area(each)) for each in found["panoptic"].masks] == [20, 40, 40]


def test_keypoints_come_with_their_scores() -> None:
    """As MMPose has them: arrays, no labels."""
    predicted = InstanceData(
        bboxes=np.ones((2, 4)), bbox_scores=np.ones(2), keypoints=np.ones((2, 17, 2)), keypoint_scores=np.zeros((2, 17))
    )
    packed = pack(detections_from_sample(DetDataSample(pred_instances=predicted))["instances"], 9, 9, 1, predicted=True)
    assert packed.keypoints is not None
    assert packed.keypoints.values()[0, 0].tolist() == [1, 1, 0]
    assert packed.labels.values().tolist() == [0, 0]
