"""Matching predictions to true objects: COCO's own answer, and what the rest are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.predicting import (
    coco_eval,
    ellipse,
    prediction_sheet,
    random_detections,
    sample_sheet,
)
from unified_tracker.predictions import Detections
from unified_tracker.predictions._analysis import Analysis, analyse
from unified_tracker.predictions._curves import COCO_IOUS
from unified_tracker.predictions._regions import COCO_SIGMAS, UNIFORM_SIGMA

CLASSES = 3
SEEDS = st.integers(0, 2**32 - 1)


def analysed(truth: dict, predicted: dict, classes: int = CLASSES, ious: tuple[float, ...] = COCO_IOUS) -> Analysis:
    return analyse(sample_sheet(truth, classes), prediction_sheet(predicted, classes), ious)


def shown(truth: Detections, predicted: Detections, ious: tuple[float, ...] = (0.5, 0.75)):
    evaluation = analysed({1: truth}, {1: predicted}, ious=ious).show(id="a", label="a", run="a", step=0, epoch=0)
    assert evaluation.images[0] is not None
    return evaluation.images[0]["instances"]


@pytest.mark.parametrize(("masks", "kind"), [(False, "bbox"), (True, "segm")])
@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_matches_are_those_of_cocoeval(masks: bool, kind: str, seed: int) -> None:
    truth, predicted = random_detections(seed, images=4, objects=12, classes=CLASSES, masks=masks)
    analysis = analysed(truth, predicted)
    expected: dict[int, dict[int, list[tuple[int, bool]]]] = {}
    for each in coco_eval(truth, predicted, CLASSES, kind).evalImgs:
        for column, prediction in enumerate(each["dtIds"] if each else []):
            of_prediction = list(zip(each["dtMatches"][:, column], each["dtIgnore"][:, column], strict=True))
            expected.setdefault(each["image_id"], {})[prediction] = [
                (int(true), bool(ignored)) for true, ignored in of_prediction
            ]
    for image_id, image in zip(truth, analysis.images, strict=True):
        assert image is not None
        verdict = image["instances"]
        assert verdict.judged is not None
        matching = verdict.judged.matching
        ids = [1 + 1000 * image_id + int(index) for index in verdict.predicted.order]
        ours = {
            prediction: [
                (1 + 1000 * image_id + int(true) if true >= 0 else 0, bool(ignored))
                for true, ignored in zip(matching.matches[:, column], matching.ignored[:, column], strict=True)
            ]
            for column, prediction in enumerate(ids)
        }
        assert ours == expected.get(image_id, {})


@pytest.mark.parametrize(("masks", "kind"), [(False, "bbox"), (True, "segm")])
@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_average_precision_is_that_of_cocoeval(masks: bool, kind: str, seed: int) -> None:
    truth, predicted = random_detections(seed, images=8, objects=12, classes=CLASSES, masks=masks)
    rows = {row.label: row for row in analysed(truth, predicted).scores["instances"].rows}
    precision = coco_eval(truth, predicted, CLASSES, kind).eval["precision"][:, :, :, 0, 0]
    for label in range(CLASSES):
        theirs = precision[:, :, label]
        if (theirs < 0).any():
            assert label not in rows or rows[label].ap is None
        else:
            assert rows[label].ap == pytest.approx(theirs.mean(), abs=1e-12)
            assert rows[label].ap50 == pytest.approx(theirs[0].mean(), abs=1e-12)
    known = precision[precision > -1]
    assert rows[-1].ap == (pytest.approx(known.mean(), abs=1e-12) if known.size else None)


@pytest.mark.parametrize("keypoints", [17, 5])
@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_keypoint_average_precision_is_that_of_cocoeval(keypoints: int, seed: int) -> None:
    truth, predicted = random_detections(seed, images=6, objects=8, classes=CLASSES, keypoints=keypoints)
    rows = {row.label: row for row in analysed(truth, predicted).scores["instances"].rows}
    sigmas = COCO_SIGMAS if keypoints == 17 else np.full(keypoints, UNIFORM_SIGMA)
    precision = coco_eval(truth, predicted, CLASSES, "keypoints", sigmas=sigmas).eval["precision"][:, :, :, 0, 0]
    for label in range(CLASSES):
        theirs = precision[:, :, label]
        if (theirs < 0).any():
            assert label not in rows or rows[label].quality is None
        else:
            assert rows[label].quality == pytest.approx(theirs.mean(), abs=1e-9)


@given(seed=SEEDS, threshold=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_hiding_what_scores_below_a_slider_changes_nothing_about_the_rest(seed: int, threshold: float) -> None:
    truth, predicted = random_detections(seed, images=1, objects=15, classes=CLASSES)
    everything = predicted[1]
    kept = everything.scores >= threshold
    rest = Detections(everything.labels[kept], everything.boxes[kept], scores=everything.scores[kept])
    whole, part = shown(truth[1], everything), shown(truth[1], rest)
    count = int(kept.sum())
    assert part.g == [row[:count] for row in whole.g]
    assert part.e == [row[:count] for row in whole.e]
    assert part.o == whole.o[:count]


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_input_does_not_matter(seed: int) -> None:
    truth, predicted = random_detections(seed, images=1, objects=15, classes=CLASSES)
    given_order = predicted[1]
    rng = np.random.default_rng(seed)
    scores = rng.permutation(np.linspace(0.1, 0.9, len(given_order.labels)))  # equal scores keep their order
    shuffled = rng.permutation(len(scores))
    first = Detections(given_order.labels, given_order.boxes, scores=scores)
    second = Detections(given_order.labels[shuffled], given_order.boxes[shuffled], scores=scores[shuffled])
    assert shown(truth[1], first) == shown(truth[1], second)


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_no_object_is_found_twice_and_every_letter_agrees_with_its_match(seed: int) -> None:
    truth, predicted = random_detections(seed, images=1, objects=15, classes=CLASSES)
    objects = shown(truth[1], predicted[1])
    for matches, letters in zip(objects.g, objects.e, strict=True):
        found = [true for true, letter in zip(matches, letters, strict=True) if letter == "t"]
        assert len(found) == len(set(found)) <= int((~truth[1].crowd).sum())
        assert all((true >= 0) == (letter in "ti") for true, letter in zip(matches, letters, strict=True))
        assert all(truth[1].crowd[true] for true, letter in zip(matches, letters, strict=True) if letter == "i")


OBJECT = [10, 10, 50, 50]


@pytest.mark.parametrize(
    ("predicted", "kinds", "matches"),
    [
        pytest.param([(0, OBJECT, 0.9)], "t", [0], id="found"),
        pytest.param([(0, [90, 90, 99, 99], 0.9)], "b", [-1], id="nothing there"),
        pytest.param([(1, OBJECT, 0.9)], "c", [-1], id="another class"),
        pytest.param([(0, [10, 10, 50, 28], 0.9)], "l", [-1], id="overlap 0.45"),
        pytest.param([(0, [10, 10, 50, 30], 0.9)], "t", [0], id="overlap exactly 0.5"),
        pytest.param([(0, [10, 10, 50, 13], 0.9)], "b", [-1], id="overlap below 0.1"),
        pytest.param([(1, [10, 10, 50, 28], 0.9)], "b", [-1], id="another class, badly placed"),
        pytest.param([(0, OBJECT, 0.8), (0, [11, 11, 50, 50], 0.9)], "td", [0, -1], id="twice"),
        pytest.param([(0, OBJECT, 0.9), (1, OBJECT, 0.8)], "tc", [0, -1], id="found, and another class"),
        pytest.param([(2, [100, 60, 110, 70], 0.9), (2, [100, 60, 120, 70], 0.8)], "ii", [2, 2], id="in a crowd"),
        pytest.param([(0, [100, 60, 110, 70], 0.9)], "b", [-1], id="in the crowd of another class"),
    ],
)
def test_each_prediction_is_called_what_it_is(predicted: list, kinds: str, matches: list[int]) -> None:
    truth = Detections([0, 1, 2], [OBJECT, [80, 10, 100, 30], [90, 50, 150, 110]], crowd=[False, False, True])
    labels, boxes, scores = zip(*predicted, strict=True)
    objects = shown(truth, Detections(labels, boxes, scores=scores))
    assert (objects.e[0], objects.g[0]) == (kinds, matches)


def test_masks_decide_where_both_sides_have_them() -> None:
    """Two diagonal strips in the same box overlap in nothing."""
    upper = np.triu(np.ones((120, 160), bool), 10)
    lower = np.tril(np.ones((120, 160), bool), -10)
    box = [[0, 0, 160, 120]]
    with_masks = shown(Detections([0], box, masks=[upper]), Detections([0], box, scores=[0.9], masks=[lower]))
    with_boxes = shown(Detections([0], box, masks=[upper]), Detections([0], box, scores=[0.9]))
    assert (with_masks.e[0], with_masks.o) == ("b", [0.0])
    assert (with_boxes.e[0], with_boxes.o) == ("t", [1.0])


def test_masks_without_boxes_are_compared_with_boxes_by_the_box_around_them() -> None:
    mask = ellipse([20, 20, 60, 80])
    objects = shown(Detections([0], masks=[mask]), Detections([0], [[20, 20, 61, 81]], scores=[0.5]))
    assert objects.e[0] == "t"
