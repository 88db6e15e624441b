"""Predictions in MLflow, read back through its client: two runs on one sample, and one on a changed one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

import unified_tracker as ut
from tests.mlflow_reading import MlflowRun
from unified_tracker.cli import app
from unified_tracker.predictions import Detections, SampleEvaluation, SampleImage, ValidationSample
from unified_tracker.predictions._page import read_page

HEIGHT, WIDTH, IMAGES = 48, 64, 5
NAMES = ["cat", "<b>dog", "größe"]


def truth(number: int) -> Detections:
    rng = np.random.default_rng(number)
    low = rng.uniform(0, 24, (3, 2))
    return Detections(rng.integers(0, 3, 3), np.concatenate([low, low + 20], 1))


def predicted(number: int, step: int) -> Detections:
    rng = np.random.default_rng(1000 * step + number)
    true = truth(number)
    boxes = (true.boxes + rng.normal(0, 2, (3, 4))).astype(np.float32)
    return Detections(true.labels, boxes, rng.random(3, np.float32))


def make_sample(folder: Path, images: int = IMAGES) -> ValidationSample:
    for number in range(images):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"ä {number}.png")
    every = [
        SampleImage(f"id/{number}", HEIGHT, WIDTH, path=folder / f"ä {number}.png", truth=truth(number))
        for number in range(images)
    ]
    return ValidationSample("tiny set", NAMES, every, category_ids=[3, 1, 7])


class Recorded:
    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, f"sqlite:///{folder / 'mlflow.db'}"
        self.sample = make_sample(folder)
        self.runs = [self.run(self.sample, (10, 20)), self.run(self.sample, (10,))]
        self.changed = self.run(make_sample(folder, IMAGES - 1), (10,))

    def run(self, sample: ValidationSample, steps: tuple[int, ...]) -> ut.Run:
        options = {"mlflow": {"tracking_uri": self.uri, "artifact_location": str(self.folder / "store")}}
        with ut.start_run("mlflow", project="sample", dir=self.folder / "runs", options=options) as run:
            for step in steps:
                found = {image.id: predicted(number, step) for number, image in enumerate(sample.images)}
                evaluation = SampleEvaluation(sample, found, metrics={"val/bbox/mAP": step / 100})
                run.log_predictions(evaluation, step=step, aliases=[f"iter_{step}"])
        return run

    def read(self, run: ut.Run) -> MlflowRun:
        return MlflowRun(self.uri, run.id)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    return Recorded(tmp_path_factory.mktemp("predictions"))


def test_boxes_and_scores_in_parquet_are_the_model_s_own(recorded: Recorded) -> None:
    run = recorded.runs[0]
    files = recorded.read(run).files(f"run-{run.id}-predictions/v1")
    table = pyarrow.parquet.read_table(io.BytesIO(files[f"run-{run.id}-predictions/v1/predictions.parquet"]))
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        rows.setdefault(row["image_id"], []).append(row)
    assert set(rows) == {image.id for image in recorded.sample.images}
    for number, image in enumerate(recorded.sample.images):
        given = predicted(number, 20)
        mine = sorted(rows[str(image.id)], key=lambda row: row["index"])
        assert [row["score"] for row in mine] == given.scores.tolist()
        assert [[row[key] for key in ("x1", "y1", "x2", "y2")] for row in mine] == given.boxes.tolist()
        assert [row["category"] for row in mine] == [NAMES[label] for label in given.labels]
        assert [row["category_id"] for row in mine] == [[3, 1, 7][label] for label in given.labels]


def test_coco_results_stand_beside_them(recorded: Recorded) -> None:
    run = recorded.runs[0]
    path = f"run-{run.id}-predictions/v0/coco_results.json"
    results = json.loads(recorded.read(run).files(f"run-{run.id}-predictions/v0")[path])
    expected = [score for number in range(IMAGES) for score in predicted(number, 10).scores.tolist()]
    assert [row["score"] for row in results] == expected


def test_each_evaluation_is_a_version_with_its_aliases(recorded: Recorded) -> None:
    run = recorded.runs[0]
    path = f"run-{run.id}-predictions/versions.json"
    versions = json.loads(recorded.read(run).files(f"run-{run.id}-predictions")[path])
    assert [version["aliases"] for version in versions] == [["iter_10"], ["latest", "iter_20"]]


def test_the_sample_is_stored_by_the_first_run_and_again_only_when_it_has_changed(recorded: Recorded) -> None:
    first, second, changed = (recorded.read(run) for run in (*recorded.runs, recorded.changed))
    names = [f"images/ä_{number}.png" for number in range(IMAGES)]
    stored = first.files("tiny set-val")
    assert {f"tiny set-val/v0/{name}" for name in names} <= set(stored)
    original = (recorded.folder / "ä 0.png").read_bytes()
    assert stored["tiny set-val/v0/images/ä_0.png"] == original
    assert second.files("tiny set-val") == {}
    assert any(path.endswith("annotations.json") for path in changed.files("tiny set-val"))
    places = [
        {value for tag, value in run.tags.items() if tag.startswith("unified_tracker.sample.")}
        for run in (first, second)
    ]
    assert places[0] == places[1] == {f"runs:/{first.id}/tiny%20set-val/v0"}


def test_the_sample_is_an_input_of_every_run(recorded: Recorded) -> None:
    inputs = [recorded.read(run).run.inputs.dataset_inputs for run in (*recorded.runs, recorded.changed)]
    assert [[each.dataset.name for each in every] for every in inputs] == [["tiny set-val"]] * 3
    digests = [every[0].dataset.digest for every in inputs]
    assert digests[0] == digests[1] != digests[2]


def test_annotations_are_a_coco_data_set(recorded: Recorded) -> None:
    stored = recorded.read(recorded.runs[0]).files("tiny set-val/v0")
    content = json.loads(stored["tiny set-val/v0/annotations.json"])
    assert [category["name"] for category in content["categories"]] == NAMES
    boxes = np.array([each["bbox"] for each in content["annotations"]])
    expected = np.concatenate([truth(number).boxes for number in range(IMAGES)])
    assert np.array_equal(boxes[:, :2], expected[:, :2])
    assert np.allclose(boxes[:, :2] + boxes[:, 2:], expected[:, 2:])


def test_tables_and_pictures_of_each_evaluation(recorded: Recorded) -> None:
    files = recorded.read(recorded.runs[0]).files()
    for step in (10, 20):
        rows = json.loads(files[f"tables/val/predictions/worst_images/step_{step:09d}.json"])
        assert rows["columns"][:2] == ["image", "F1"]
        assert [row[1] for row in rows["data"]] == sorted(row[1] for row in rows["data"])
        assert len(rows["data"]) == IMAGES
        classes = json.loads(files[f"tables/val/predictions/per_class/step_{step:09d}.json"])
        assert classes["data"][0][0] == "all"
        for name in ("confusion_matrix", "precision_recall"):
            content = files[f"figures/val/{name}/step_{step:09d}.png"]
            assert Image.open(io.BytesIO(content)).width > 300


def test_the_page_of_the_run_shows_all_evaluations(recorded: Recorded, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_bytes(recorded.read(recorded.runs[0]).files("predictions")["predictions/index.html"])
    document = read_page(page)
    assert [evaluation.step for evaluation in document.evaluations] == [10, 20]
    assert all(image.src.startswith("data:image/") for image in document.images)


def test_of_a_downloaded_page_only_what_it_shows_is_taken(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.uri)
    assert recorded.runs[0].dir is not None
    page = (recorded.runs[0].dir / "predictions" / "index.html").read_bytes()
    (tmp_path / "page").mkdir()
    options = {"mlflow": {"tracking_uri": recorded.uri}}
    with ut.start_run("mlflow", project="sample", dir=tmp_path / "runs", options=options) as run:
        for name, content in (
            ("evil", page + b"<script>alert(1)</script>"),
            ("nonsense", b"<script>alert(1)</script>"),
        ):
            (tmp_path / "page" / "index.html").write_bytes(content)
            run.log_artifact(tmp_path / "page", name=name, type="result")
    command = ["predictions", "show", "--no-browser", "--output", str(tmp_path / "copy.html")]
    assert CliRunner().invoke(app, [*command, "mlflow-artifact://sample/evil"]).exit_code == 0
    assert (tmp_path / "copy.html").read_bytes() == page
    assert CliRunner().invoke(app, [*command, "mlflow-artifact://sample/nonsense"]).exit_code == 4


def test_the_command_shows_a_run_directory_and_an_artifact(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.uri)
    run = recorded.runs[0]
    for target, steps in (
        (str(run.dir), [10, 20]),
        (f"mlflow-artifact://run-{run.id}-predictions:iter_10", [10]),
        (f"mlflow-artifact://sample/run-{run.id}-predictions:v1", [20]),
    ):
        copy = tmp_path / "copy.html"
        result = CliRunner().invoke(app, ["predictions", "show", target, "--no-browser", "--output", str(copy)])
        assert result.exit_code == 0, result.output
        assert [evaluation.step for evaluation in read_page(copy).evaluations] == steps
    result = CliRunner().invoke(app, ["predictions", "show", f"mlflow-artifact://run-{run.id}-predictions:best"])
    assert result.exit_code == 4
    assert "iter_10, iter_20, latest, v0, v1" in result.output


def test_matches_at_another_threshold(recorded: Recorded, tmp_path: Path) -> None:
    again = tmp_path / "again.html"
    arguments = [
        "predictions",
        "show",
        str(recorded.runs[0].dir),
        "--iou",
        "0.9",
        "--output",
        str(again),
        "--no-browser",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for evaluation in read_page(again).evaluations:
        assert evaluation.ious == [0.9, 0.5, 0.75]
        counts = [sum(image["instances"].e[i].count("t") for image in evaluation.images if image) for i in range(3)]
        assert counts[0] < counts[2] <= counts[1]


def test_two_evaluations_are_compared_also_of_two_runs(recorded: Recorded, tmp_path: Path) -> None:
    first, second = (str(run.dir) for run in recorded.runs)
    page = tmp_path / "diff.html"
    result = CliRunner().invoke(app, ["predictions", "diff", first, first, "--json", "--output", str(page)])
    assert result.exit_code == 0, result.output
    assert {image["id"] for image in json.loads(result.stdout)["images"]} == {
        image.id for image in recorded.sample.images
    }
    assert [evaluation.step for evaluation in read_page(page).evaluations] == [10, 20]
    result = CliRunner().invoke(app, ["predictions", "diff", first, second, "--at", "10", "10", "--json"])
    assert all(image["found"] == image["lost"] == [] for image in json.loads(result.stdout)["images"])
    other = CliRunner().invoke(app, ["predictions", "diff", first, str(recorded.changed.dir), "--json"])
    assert "1 images are in one of the two only" in " ".join(json.loads(other.stdout)["notes"])
