"""A tracked MMDetection checkpoint answers over HTTP what the framework itself says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.artifacts
import numpy as np
import pytest
from mmdet.apis import inference_detector, init_detector
from pycocotools import mask as rle

from tests.mlflow_reading import MlflowRun
from tests.mmdet.conftest import Training, train
from tests.model_serving import ask, encoded, served
from unified_tracker._detector import read_card

CLASSES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def masked(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A Mask R-CNN of one epoch, in whose configuration the tracker is imported."""
    return train(
        shapes,
        tmp_path_factory.mktemp("masked"),
        config="mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
        epochs=1,
        set={
            "custom_imports": {"imports": ["unified_tracker_mmdet"]},
            "default_hooks.checkpoint.interval": 1,
            "model.test_cfg.rcnn.score_thr": 0.001,
            "secret_of_mine.password": "hunter22",
            "secret_of_mine.cls_token": True,
        },
    )


def last_model(training: Training) -> Any:
    assert training.code == 0, training.text
    return MlflowRun(training.uri, training.said["run_id"]).models()[-1]


def expected(config: Path, weights: Path, image: Path) -> Any:
    """What MMDetection's own inference makes of the training's own files."""
    return inference_detector(init_detector(str(config), str(weights), device="cpu"), str(image)).pred_instances


def assert_same(rows: list[dict[str, Any]], found: Any) -> None:
    order = np.argsort(-found.scores.numpy(), kind="stable")
    assert len(rows) == len(order) > 0
    for row, index in zip(rows, order, strict=True):
        left, top, width, height = row["bbox"]
        assert np.allclose([left, top, left + width, top + height], found.bboxes[index].numpy(), atol=1e-3)
        assert row["score"] == pytest.approx(float(found.scores[index]), abs=1e-6)
        label = int(found.labels[index])
        assert (row["category"], row["category_id"]) == (CLASSES[label], label + 1)
        if "masks" in found:
            assert np.array_equal(rle.decode(row["segmentation"]), found.masks[index])


def test_http_answers_what_mmdetection_finds_also_without_the_tracker(
    masked: Training, shapes: Path, tmp_path: Path
) -> None:
    image = sorted((shapes / "val").iterdir())[0]
    model = last_model(masked)
    (config,) = masked.work_dir.glob("*.py")
    found = expected(config, masked.work_dir / "epoch_1.pth", image)
    assert "masks" in found
    with served(f"models:/{model.model_id}", masked.uri, tmp_path, without_tracker=True, allow_paths=True) as url:
        status, answer = ask(url, {"dataframe_records": [{"image": encoded(image)}]})
        assert status == 200, answer["stack_trace"]
        assert_same(answer["predictions"][0], found)
        status, by_path = ask(url, {"inputs": [str(image)]})
        assert by_path == answer
        status, answer = ask(url, {"inputs": [encoded(image)], "params": {"score_threshold": 2.0}})
        assert (status, answer) == (200, {"predictions": [[]]})


def test_boxes_only_and_the_bytes_that_were_rotated_away(trained: Training, shapes: Path, tmp_path: Path) -> None:
    image = sorted((shapes / "val").iterdir())[1]
    model = MlflowRun(trained.uri, trained.said["run_id"]).models()[1]
    folder = Path(
        mlflow.artifacts.download_artifacts(
            artifact_uri=model.artifact_location, tracking_uri=trained.uri, dst_path=str(tmp_path)
        )
    )
    detector = mlflow.pyfunc.load_model(str(folder), model_config={"device": "cpu"})
    (rows,) = detector.predict({"image": image.read_bytes()})
    (config,) = trained.work_dir.glob("*.py")
    assert_same(rows, expected(config, trained.output / "kept" / "epoch_2.pth", image))
    assert all("segmentation" not in row for row in rows)


def test_card_and_configuration_say_what_the_checkpoint_is(masked: Training, tmp_path: Path) -> None:
    model = last_model(masked)
    folder = Path(
        mlflow.artifacts.download_artifacts(
            artifact_uri=model.artifact_location, tracking_uri=masked.uri, dst_path=str(tmp_path)
        )
    )
    card = read_card(folder)
    assert card is not None
    assert (card.framework, card.weights, card.config) == ("mmdetection", "epoch_1.pth", "config.py")
    assert (card.classes, card.category_ids, card.imports) == (CLASSES, (1, 2, 3), ())
    text = (folder / "config.py").read_text()
    assert "hunter22" not in text
    assert "unified_tracker" in text
    assert model.params["framework"] == "mmdetection"
