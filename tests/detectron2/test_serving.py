"""A tracked Detectron2 checkpoint answers over HTTP what the framework itself says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow.artifacts
import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from pycocotools import mask as rle

from tests.detectron2.conftest import Training
from tests.mlflow_reading import MlflowRun
from tests.model_serving import ask, encoded, served
from unified_tracker._detector import read_card
from unified_tracker.demo import _detectron2  # noqa: F401 -- registers the backbone
from unified_tracker_detectron2 import add_tracker_config
from unified_tracker_detectron2._config import as_dict, masked_yaml


@pytest.fixture(scope="module")
def model(trained: Training) -> Any:
    """The last checkpoint."""
    assert trained.code == 0, trained.text
    return MlflowRun(trained.uri, trained.said["run_id"]).models()[-1]


@pytest.fixture(scope="module")
def folder(trained: Training, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files."""
    target = tmp_path_factory.mktemp("model")
    return Path(
        mlflow.artifacts.download_artifacts(
            artifact_uri=model.artifact_location, tracking_uri=trained.uri, dst_path=str(target)
        )
    )


def expected(trained: Training, image: Path) -> list[dict[str, Any]]:
    """What Detectron2's own predictor makes of the training's own files."""
    cfg = get_cfg()
    add_tracker_config(cfg)
    cfg.merge_from_file(str(trained.work_dir / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(trained.work_dir / "model_final.pth")
    found = DefaultPredictor(cfg)(read_image(str(image), "BGR"))["instances"]
    return [
        {"box": box, "score": score, "label": label, "mask": mask}
        for box, score, label, mask in zip(
            found.pred_boxes.tensor.tolist(),
            found.scores.tolist(),
            found.pred_classes.tolist(),
            found.pred_masks.numpy(),
            strict=True,
        )
    ]


def test_http_answers_what_detectron2_finds(trained: Training, model: Any, shapes: Path, tmp_path: Path) -> None:
    first, second = sorted((shapes / "val").iterdir())[:2]
    with served("models:/shapes@last", trained.uri, tmp_path) as url:
        status, answer = ask(url, {"dataframe_split": {"columns": ["image"], "data": [[encoded(first)]]}})
        assert status == 200, answer["stack_trace"]
        (rows,) = answer["predictions"]
        wanted = expected(trained, first)
        assert len(rows) == len(wanted) > 0
        for row, want in zip(rows, sorted(wanted, key=lambda each: -each["score"]), strict=True):
            left, top, width, height = row["bbox"]
            assert np.allclose([left, top, left + width, top + height], want["box"], atol=1e-3)
            assert row["score"] == pytest.approx(want["score"], abs=1e-6)
            assert row["category"] == ("circle", "square", "triangle")[want["label"]]
            assert row["category_id"] == want["label"] + 1
            assert np.array_equal(rle.decode(row["segmentation"]), want["mask"])
        threshold = rows[len(rows) // 2]["score"]
        few = {"inputs": {"image": [encoded(first), f"data:image/png;base64,{encoded(second)}"]}}
        status, answer = ask(url, {**few, "params": {"score_threshold": threshold}})
        assert answer["predictions"][0] == [row for row in rows if row["score"] >= threshold]
        assert len(answer["predictions"]) == 2
        status, answer = ask(url, {"inputs": [str(first)]})
        assert (status, "picture 0 is no base64; paths are not taken here" in answer["message"]) == (400, True)
        status, answer = ask(url, {"inputs": ["aGVsbG8="]})
        assert (status, "picture 0 is no picture" in answer["message"]) == (400, True)


def test_registered_aliases_name_the_checkpoints_that_the_run_names(trained: Training) -> None:
    run = MlflowRun(trained.uri, trained.said["run_id"])
    by_source = {f"models:/{model.model_id}": model.params["step"] for model in run.models()}
    registered = {
        alias: by_source[run.client.get_model_version("shapes", version).source]
        for alias, version in run.client.get_registered_model("shapes").aliases.items()
    }
    aliases = run.model_aliases()
    assert registered["last"] == aliases["latest"] == "25"
    assert registered["best"] == aliases["best"]
    assert registered["best-bbox_AP"] == aliases["best-bbox.AP"]


def test_python_takes_bytes_and_paths(trained: Training, folder: Path, shapes: Path) -> None:
    import pandas as pd

    image = sorted((shapes / "val").iterdir())[0]
    detector = mlflow.pyfunc.load_model(str(folder))
    by_bytes = detector.predict(pd.DataFrame({"image": [image.read_bytes()]}))
    by_path = detector.predict(pd.DataFrame({"image": [str(image)]}))
    assert by_bytes == by_path == detector.predict({"image": encoded(image)})
    assert len(by_bytes[0]) == len(expected(trained, image))
    assert detector.predict({"image": encoded(image)}, params={"score_threshold": 1.1}) == [[]]


def test_the_model_has_what_it_needs_and_says_so(trained: Training, model: Any, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} - {"registered_model_meta"}  # MLflow's own, by serving from here
    logged = {"model_final.pth", "config.yaml", "detector.json"}
    generated = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "detector.py", "framework.py"}
    assert names == logged | generated
    assert set(json.loads(model.tags["unified_tracker.files"])) == logged
    card = read_card(folder)
    assert card is not None
    assert (card.framework, card.weights, card.config) == ("detectron2", "model_final.pth", "config.yaml")
    assert (card.classes, card.category_ids) == (("circle", "square", "triangle"), (1, 2, 3))
    assert model.params["framework"] == "detectron2"
    assert len(model.params["config_digest"]) == 16
    for name in ("detector.py", "framework.py"):
        text = (folder / name).read_text()
        assert "unified_tracker" not in "".join(line for line in text.splitlines() if "import" in line)


def test_secrets_are_masked_and_the_file_is_still_a_configuration(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.STORE = CfgNode({"PASSWORD": "hunter22", "URL": "https://user:secret@example.org/x"})
    text = masked_yaml(cfg)
    (tmp_path / "config.yaml").write_text(text)
    read = get_cfg()
    read.STORE = CfgNode({"PASSWORD": "", "URL": ""})
    read.merge_from_file(str(tmp_path / "config.yaml"))
    assert (read.STORE.PASSWORD, read.STORE.URL) == ("***", "https://***@example.org/x")
    assert as_dict(read.MODEL) == as_dict(cfg.MODEL)
