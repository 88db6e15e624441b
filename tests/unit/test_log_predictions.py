"""`Run.log_predictions`: what is written by the training, and what is refused of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unified_tracker as ut
from unified_tracker._journal import JournalReader
from unified_tracker.predictions import Detections, SampleEvaluation, SampleImage, ValidationSample, choose_images
from unified_tracker.predictions._sheets import PredictionSheet, SampleSheet, decode_predictions, decode_sample
from unified_tracker.records import Predictions


@pytest.fixture
def run(recording: Path) -> Iterator[ut.Run]:
    with ut.start_run("mlflow", options={"mlflow": {"tracking_uri": "sqlite:///mlflow.db"}}) as run:
        yield run


def recorded(run: ut.Run) -> list[tuple[Predictions, SampleSheet, PredictionSheet]]:
    assert run.dir is not None
    records = [each.record for each in JournalReader(run.dir / "journal").read(1 << 30, final=True)]
    return [
        (
            record,
            decode_sample((run.dir / record.sample.staged).read_bytes()),
            decode_predictions((run.dir / record.file.staged).read_bytes()),
        )
        for record in records
        if isinstance(record, Predictions)
    ]


def sample(**more: Any) -> ValidationSample:
    truth = Detections(labels=[1], boxes=[[1.5, 2, 30, 40]])
    images = [SampleImage(number, 48, 64, name=f"{number}.jpg", truth=truth) for number in (7, 9)]
    return ValidationSample("balloon", ["a", "b"], images, **more)


BOX = [[1, 2, 3, 4]]


def test_boxes_and_scores_are_kept_to_the_bit(run: ut.Run) -> None:
    rng = np.random.default_rng(0)
    boxes, scores = rng.random((50, 4), np.float32) * 48, rng.random(50, np.float32)
    run.log_predictions(SampleEvaluation(sample(), {7: Detections(rng.integers(0, 2, 50), boxes, scores)}), step=3)
    ((record, _, sheet),) = recorded(run)
    assert (record.step, record.split, record.dataset) == (3, "val", "balloon")
    objects = sheet.images[7]["instances"]
    assert objects.boxes is not None and objects.boxes.values().tobytes() == boxes.tobytes()
    assert objects.scores is not None and objects.scores.values().tobytes() == scores.tobytes()


def test_the_sample_is_stored_once_and_again_when_its_content_changes(run: ut.Run) -> None:
    same = sample()
    for step in (1, 2):
        run.log_predictions(SampleEvaluation(same, {7: Detections([0], BOX, [0.5])}), step=step)
    run.log_predictions(SampleEvaluation(sample(), {9: Detections([0], BOX, [0.5])}), step=3)  # equal, another object
    run.log_predictions(SampleEvaluation(sample(category_ids=[5, 6]), {}), step=4)
    assert run.dir is not None
    assert len(list((run.dir / "predictions").glob("*.sample"))) == 2
    assert len({record.sample.staged for record, _, _ in recorded(run)[:3]}) == 1


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Detections([2], BOX, [0.5]), "labels must be 0 to 1, not 2 to 2"),
        (Detections([-1], BOX, [0.5]), "labels must be 0 to 1, not -1"),
        (Detections([0], BOX), "predictions need scores"),
        (Detections([0], [[1, 2, 3]], [0.5]), "boxes must have the shape (1, 4), not (1, 3)"),
        (Detections([0, 1], BOX, [0.5]), "boxes must have the shape (2, 4), not (1, 4)"),
        (Detections([0], None, [0.5]), "objects need boxes, masks or keypoints"),
        (
            Detections([0], BOX, [0.5], masks=np.zeros((1, 5, 5), bool)),
            "masks must have the size of the image, (48, 64)",
        ),
        (Detections([0], BOX, [0.5], masks=[]), "there are 0 masks for 1 objects"),
        (Detections([0], BOX, [0.5], keypoints=[[[1, 2]]]), "keypoints must have the shape (1, k, 3), not (1, 1, 2)"),
        (Detections([0], BOX, [0.5], crowd=[True, False]), "crowd has 2 values for 1 objects"),
        ({"boxes": Detections([0], BOX, [0.5])}, "unknown task 'boxes'"),
        (Detections([0], "nonsense", [0.5]), "boxes"),
        (None, ""),
    ],
)
def test_an_image_that_does_not_fit_together_is_refused_and_the_others_are_recorded(
    run: ut.Run, capsys: pytest.CaptureFixture[str], bad: Any, why: str
) -> None:
    good = Detections([0], BOX, [0.5])
    run.log_predictions(SampleEvaluation(sample(), {7: bad, 9: good}), step=1)
    ((_, _, sheet),) = recorded(run)
    assert set(sheet.images) == {9}
    assert run.refused == 1
    said = capsys.readouterr().err
    assert "image 7" in said and why in said


def test_truth_that_does_not_fit_costs_its_image_only(run: ut.Run, capsys: pytest.CaptureFixture[str]) -> None:
    images = [*sample().images, SampleImage(11, 48, 64, truth=Detections([5], BOX)), SampleImage(7, 48, 64)]
    run.log_predictions(SampleEvaluation(ValidationSample("d", ["a", "b"], images), {}), step=1)
    ((_, sheet, _),) = recorded(run)
    assert [image.id for image in sheet.images] == [7, 9]
    assert run.refused == 2
    assert "image 11" in capsys.readouterr().err


def test_a_sample_that_cannot_be_used_ends_no_training(run: ut.Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.log_predictions(SampleEvaluation(sample(category_ids=[1]), {}), step=1)
    run.log_predictions("nonsense", step=1)  # type: ignore[arg-type]  # what a script may do
    assert recorded(run) == []
    assert run.refused == 2
    assert "2 classes and 1 category ids" in capsys.readouterr().err


def test_images_without_objects_and_images_that_nobody_asked_for(run: ut.Run) -> None:
    empty = Detections([], [], [])
    run.log_predictions(SampleEvaluation(sample(), {7: empty, 1234: Detections([0], BOX, [0.5])}), step=1)
    ((_, _, sheet),) = recorded(run)
    assert set(sheet.images) == {7}
    assert len(sheet.images[7]["instances"]) == 0


def test_the_best_300_of_an_image_are_kept(run: ut.Run) -> None:
    scores = np.linspace(0, 1, 1000)
    everything = Detections(np.zeros(1000, int), np.zeros((1000, 4)), scores)
    run.log_predictions(SampleEvaluation(sample(), {7: everything}), step=1)
    kept = recorded(run)[0][2].images[7]["instances"].scores
    assert kept is not None and kept.values().tolist() == scores[::-1][:300].tolist()


def test_pixels_are_kept_beside_the_run(run: ut.Run) -> None:
    pixels = np.arange(48 * 64 * 3, dtype=np.uint16).reshape(48, 64, 3)
    images = [SampleImage("ä", 48, 64, pixels=pixels), SampleImage("none", 48, 64, path="not/there.jpg")]
    run.log_predictions(SampleEvaluation(ValidationSample("d", ["a"], images), {}), step=1)
    ((_, sheet, _),) = recorded(run)
    assert run.dir is not None
    assert np.array_equal(np.load(run.dir / sheet.images[0].file), pixels)
    assert (sheet.images[1].name, sheet.images[1].size) == ("not/there.jpg", 0)


@settings(deadline=None)  # other processes may have the machine
@given(st.sets(st.integers(0, 10_000)), st.integers(0, 50), st.integers(0, 3))
def test_a_choice_depends_on_the_ids_alone(ids: set[int], count: int, seed: int) -> None:
    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
    chosen = choose_images(ids, count, seed)
    assert chosen == choose_images(sorted(ids, reverse=True) * 2, count, seed)
    assert len(chosen) == min(count, len(ids)) and set(chosen) <= ids
    assert set(choose_images(ids, max(count - 1, 0), seed)) <= set(chosen)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == (state, numpy_state)
