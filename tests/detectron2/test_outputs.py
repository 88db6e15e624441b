"""Real outputs and registered data sets of Detectron2, translated without a training."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as coco

from unified_tracker.predictions import SampleImage
from unified_tracker.predictions._collector import Ranks
from unified_tracker.predictions._sheets import pack
from unified_tracker_detectron2 import detections_from_instances
from unified_tracker_detectron2._config import evaluated_datasets
from unified_tracker_detectron2._dataset import CatalogDataset
from unified_tracker_detectron2._detections import ClassList, detections_from_output
from unified_tracker_detectron2._predictions import EvaluationWatch, ModelListener

SIZE = (10, 20)


@pytest.fixture
def catalog() -> Iterator[Any]:
    """Registers data sets, and forgets them."""
    names = []

    def register(name: str, records: list[dict[str, Any]], **meta: Any) -> None:
        names.append(name)
        DatasetCatalog.register(name, lambda: copy.deepcopy(records))
        MetadataCatalog.get(name).set(**meta)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def instances(count: int = 3, **more: Any) -> Instances:
    rng = np.random.default_rng(count)
    found = Instances(SIZE)
    found.pred_boxes = Boxes(torch.tensor(np.sort(rng.random((count, 2, 2)) * 10, 1).reshape(count, 4)).float())
    found.scores = torch.tensor(rng.random(count)).float()
    found.pred_classes = torch.tensor(rng.integers(0, 3, count))
    for name, value in more.items():
        found.set(name, value)
    return found


def record(image_id: int | str, annotations: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    base = {"file_name": f"/data/{image_id}.jpg", "image_id": image_id, "height": 10, "width": 20}
    return {**base, "annotations": annotations, **more}


def test_instances_are_those_of_detectron2s_own_results() -> None:
    bitmaps = torch.rand(3, *SIZE) > 0.5
    found = instances(pred_masks=bitmaps, pred_keypoints=torch.rand(3, 5, 3))
    packed = pack(detections_from_instances(found), *SIZE, 3, predicted=True)
    own = instances_to_coco_json(copy.deepcopy(found), 1)
    assert packed.scores is not None and packed.boxes is not None and packed.keypoints is not None
    assert packed.scores.values().tolist() == [each["score"] for each in own]
    corners = packed.boxes.values()
    assert np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist() == [
        each["bbox"] for each in own
    ]
    assert packed.masks == [each["segmentation"]["counts"].encode() for each in own]
    assert packed.keypoints.values().reshape(3, -1).tolist() == [each["keypoints"] for each in own]


def test_instances_of_all_forms() -> None:
    bitmaps = torch.ones(2, *SIZE, dtype=torch.bool)
    for masks in (bitmaps, BitMasks(bitmaps), [coco.encode(np.asfortranarray(each.numpy())) for each in bitmaps]):
        packed = pack(detections_from_instances(instances(2, pred_masks=masks)), *SIZE, 3, predicted=True)
        assert packed.masks is not None
        assert [int(coco.area({"size": SIZE, "counts": each})) for each in packed.masks] == [200, 200]
    assert len(pack(detections_from_instances(instances(0)), *SIZE, 3, predicted=True)) == 0


def test_panoptic_and_semantic_outputs() -> None:
    """Things and stuff are both numbered from 0."""
    classes = ClassList(["person", "dog"], ["things", "sky", "grass"])
    assert classes.names == ["person", "dog", "things", "sky", "grass"]
    panoptic = torch.zeros(SIZE, dtype=torch.int32)
    panoptic[:2], panoptic[2:5] = 1, 2
    segments = [
        {"id": 1, "isthing": True, "category_id": 1, "score": 0.75, "instance_id": 0},
        {"id": 2, "isthing": False, "category_id": 1, "area": 60},
    ]
    semantic = torch.zeros(3, *SIZE)
    semantic[2, 5:] = 1
    found = detections_from_output({"panoptic_seg": (panoptic, segments), "sem_seg": semantic}, classes)
    assert found["panoptic"].labels.tolist() == [1, 3]
    assert found["panoptic"].scores.tolist() == [0.75, 1.0]
    assert [int(coco.area(each)) for each in found["panoptic"].masks] == [40, 60]
    assert found["semantic"].labels.tolist() == [2, 4]


def test_panoptic_output_without_segments_and_classes_in_both_lists() -> None:
    classes = ClassList(["person"], ["person", "sky"])
    assert (classes.names, classes.stuff) == (["person", "sky"], [0, 1])
    panoptic = torch.full(SIZE, -1)
    panoptic[:2], panoptic[2:4] = 0 * 1000 + 1, 1000
    found = detections_from_output({"panoptic_seg": (panoptic, None)}, classes)["panoptic"]
    assert found.labels.tolist() == [0, 1]


def test_registered_data_set(catalog: Any) -> None:
    counts = coco.encode(np.asfortranarray(np.ones(SIZE, np.uint8)))
    annotations = [
        {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "segmentation": [[1, 2, 4, 2, 4, 6]]},
        {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": counts, "iscrowd": 1},
    ]
    catalog(
        "val",
        [record(7, annotations), record(8, [])],
        thing_classes=["a", "b"],
        thing_dataset_id_to_contiguous_id={10: 0, 30: 1},
        keypoint_names=["head", "foot"],
        keypoint_connection_rules=[("head", "foot", (1, 2, 3)), ("head", "tail", (1, 2, 3))],
    )
    dataset = CatalogDataset("val")
    assert (dataset.classes, dataset.category_ids) == (["a", "b"], [10, 30])
    assert (dataset.keypoint_names, dataset.skeleton) == (["head", "foot"], [(0, 1)])
    truth = truth_of(dataset.image(7))["instances"]
    packed = pack(truth, *SIZE, 2, predicted=False)
    assert packed.boxes is not None and packed.crowd is not None
    assert packed.labels.values().tolist() == [1, 0]
    assert packed.boxes.values().tolist() == [[1, 2, 4, 6], [1, 2, 3, 4]]
    assert packed.masks == [[[1, 2, 4, 2, 4, 6]], counts["counts"]]
    assert packed.crowd.values().tolist() == [False, True]
    assert len(pack(truth_of(dataset.image(8))["instances"], *SIZE, 2, predicted=False)) == 0


def test_keypoints_and_classes_that_nobody_has_named(catalog: Any) -> None:
    keypoints = [1.5, 2.5, 2, 3.5, 4.5, 1]
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2, "keypoints": keypoints}
    catalog("val", [record("a", [box])])
    dataset = CatalogDataset("val")
    assert (dataset.classes, dataset.category_ids) == (["0", "1", "2"], None)
    assert truth_of(dataset.image("a"))["instances"].keypoints.tolist() == [[[1, 2, 2], [3, 4, 1]]]


def test_panoptic_and_semantic_data_set(catalog: Any, tmp_path: Path) -> None:
    ids = np.zeros((*SIZE, 3), np.uint8)
    ids[:4, :, 0], ids[6:, :, 1] = 9, 2
    Image.fromarray(ids).save(tmp_path / "panoptic.png")
    labels = np.full(SIZE, 255, np.uint8)
    labels[5:] = 1
    Image.fromarray(labels).save(tmp_path / "semantic.png")
    segments = [
        {"id": 9, "category_id": 0, "isthing": True, "iscrowd": 1},
        {"id": 512, "category_id": 1, "isthing": False, "iscrowd": 0},
    ]
    files = {"pan_seg_file_name": str(tmp_path / "panoptic.png"), "sem_seg_file_name": str(tmp_path / "semantic.png")}
    catalog(
        "val",
        [record(1, [], segments_info=segments, **files)],
        thing_classes=["cat"],
        stuff_classes=["things", "sky"],
        thing_dataset_id_to_contiguous_id={4: 0},
        stuff_dataset_id_to_contiguous_id={0: 0, 90: 1},
    )
    dataset = CatalogDataset("val")
    assert (dataset.classes, dataset.category_ids) == (["cat", "things", "sky"], [4, 0, 90])
    truth = truth_of(dataset.image(1))
    assert (truth["panoptic"].labels.tolist(), truth["panoptic"].crowd.tolist()) == ([0, 2], [True, False])
    assert truth["semantic"].labels.tolist() == [2]


def test_several_data_sets_have_a_sample_each(catalog: Any, tmp_path: Path) -> None:
    """Both number their images from 1, and share one image file."""
    names = ["first", "second"]
    for name in names:
        catalog(name, [{**record(i, []), "file_name": f"/{name}/{i}.jpg"} for i in (1, 2)], thing_classes=["a"] * 3)
    watch = EvaluationWatch(names, Ranks(tmp_path), 10, 0.3)
    for name in names:
        for i in (1, 2):
            given = {"image_id": i, "file_name": f"/{name}/{i}.jpg", "height": 10, "width": 20}
            watch.see("5", [given], [{"instances": instances(i if name == "first" else i + 2)}])
    metrics = {"val/first/bbox/mAP": 0.1, "val/second/bbox/mAP": 0.2}
    found = watch.end("5", "val", metrics)
    assert [each.sample.dataset for each in found] == names
    assert [[len(each.predictions[i]["instances"]) for i in (1, 2)] for each in found] == [[1, 2], [3, 4]]
    assert [each.metrics for each in found] == [{"val/first/bbox/mAP": 0.1}, {"val/second/bbox/mAP": 0.2}]
    assert watch.end("5", "val", metrics) == []


def test_data_set_that_cannot_be_loaded_is_said_once(
    catalog: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog("val", [record(1, [])], thing_classes=["a"] * 3)
    watch = EvaluationWatch(["nowhere", "val"], Ranks(tmp_path), 10, 0.3)
    for _ in range(3):
        watch.see("5", [record(1, [])], [{"instances": instances()}])
    assert [each.sample.dataset for each in watch.end("5", "val", {})] == ["val"]
    assert capsys.readouterr().err.count("no predictions of nowhere: KeyError") == 1


class Model(torch.nn.Module):
    """Says how many images it was given."""

    def forward(self, images: list[Any]) -> int:
        return len(images)


def test_model_is_heard_in_evaluation_mode_only() -> None:
    heard = []
    model = Model()
    listener = ModelListener(torch.nn.DataParallel(model), lambda *both: heard.append(both))
    model([1])
    model.eval()
    model([1, 2])
    copy.deepcopy(model)([1, 2, 3])  # the weights' moving average
    model.train()
    model([1])
    listener.stop()
    model.eval()
    model([1])
    assert heard == [([1, 2], 2), ([1, 2, 3], 3)]


def test_pickled_model_does_not_need_the_tracker() -> None:
    layer = torch.nn.Linear(1, 1).eval()
    ModelListener(layer, lambda *_: None)
    program = (
        "import sys, pickle, torch; print(pickle.loads(sys.stdin.buffer.read())(torch.ones(1)).shape);"
        "print([name for name in sys.modules if 'unified' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], input=pickle.dumps(layer), capture_output=True, check=False
    )
    assert done.stdout.split(b"\n")[:2] == [b"torch.Size([1])", b"[]"], done.stderr


def test_evaluated_data_sets_are_found_in_both_kinds_of_configuration() -> None:
    from detectron2.config import get_cfg
    from omegaconf import OmegaConf

    cfg = get_cfg()
    assert evaluated_datasets(cfg) == []
    cfg.DATASETS.TEST = ("a", "b")
    assert evaluated_datasets(None, cfg) == ["a", "b"]
    lazy = OmegaConf.create({"dataloader": {"test": {"dataset": {"names": "val"}}}})
    assert evaluated_datasets(lazy, cfg) == ["val"]


def truth_of(image: SampleImage) -> Any:
    return image.truth
