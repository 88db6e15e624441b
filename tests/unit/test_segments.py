"""Panoptic and semantic segments: scores compared with counting pixel by pixel."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.predicting import prediction_sheet, sample_sheet
from unified_tracker.predictions import Detections
from unified_tracker.predictions._analysis import Analysis, analyse

CLASSES = 4
VOID = -1
SIZE = {"height": 24, "width": 32}
Segments = tuple[np.ndarray, list[int], list[bool]]
"""Segment of each pixel, or VOID; class of each segment; which are crowd regions."""


def random_segments(rng: np.random.Generator, count: int, *, crowd: bool = False) -> Segments:
    """Segments that are the pixels nearest to some random points, with a void corner; none is empty."""
    points = rng.uniform(0, 32, (count, 2))
    rows, columns = np.mgrid[: SIZE["height"], : SIZE["width"]]
    distance = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    nearest = distance.argmin(2)
    nearest[: rng.integers(0, 12), : rng.integers(0, 20)] = VOID
    kept = [index for index in range(count) if (nearest == index).any()]
    numbered = np.full_like(nearest, VOID)
    for number, index in enumerate(kept):
        numbered[nearest == index] = number
    labels = rng.integers(0, CLASSES, len(kept)).tolist()
    crowds = [bool(crowd and each == 0 and labels.index(0) == place) for place, each in enumerate(labels)]
    return numbered, labels, crowds


def moved(rng: np.random.Generator, segments: Segments) -> Segments:
    """The same a few pixels away, some with another class."""
    numbered, labels, _ = segments
    shifted = np.roll(numbered, rng.integers(-4, 5, 2), (0, 1))
    guessed = [int(rng.integers(0, CLASSES)) if rng.random() < 0.3 else label for label in labels]
    return shifted, guessed, [False] * len(labels)


def detections(segments: Segments, *, predicted: bool) -> Detections:
    numbered, labels, crowd = segments
    masks = [numbered == number for number in range(len(labels))]
    return Detections(labels, masks=masks, scores=np.ones(len(labels)) if predicted else None, crowd=crowd)


def analysed(truth: list[Segments], predicted: list[Segments], task: str) -> Analysis:
    given_truth = {index: {task: detections(each, predicted=False)} for index, each in enumerate(truth)}
    said = {index: {task: detections(each, predicted=True)} for index, each in enumerate(predicted)}
    return analyse(sample_sheet(given_truth, CLASSES, **SIZE), prediction_sheet(said, CLASSES, **SIZE))


def panopticapi(truth: list[Segments], predicted: list[Segments]) -> dict[int, list[float]]:
    """tp, fp, fn and sum of IoUs of each class, counted as panopticapi's `pq_compute_single_core` counts them."""
    counts: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])
    for (true, labels, crowd), (found, guessed, _) in zip(truth, predicted, strict=True):
        matched_true, matched_found = set(), set()
        for a, label in enumerate(labels):
            for b, guess in enumerate(guessed):
                common = int(((true == a) & (found == b)).sum())
                void = int(((true == VOID) & (found == b)).sum())
                overlap = common / (int((true == a).sum()) + int((found == b).sum()) - common - void)
                if not crowd[a] and label == guess and overlap > 0.5:
                    counts[label][0] += 1
                    counts[label][3] += overlap
                    matched_true.add(a)
                    matched_found.add(b)
        for a, label in enumerate(labels):
            counts[label][2] += a not in matched_true and not crowd[a]
        for b, guess in enumerate(guessed):
            inside = found == b
            spared = (true[inside] == VOID).sum()
            spared += sum((true[inside] == a).sum() for a in range(len(labels)) if crowd[a] and labels[a] == guess)
            counts[guess][1] += b not in matched_found and not spared / inside.sum() > 0.5
    return {label: each for label, each in counts.items() if any(each[:3])}


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_panoptic_quality_is_that_of_panopticapi(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = [random_segments(rng, 6, crowd=True) for _ in range(4)]
    predicted = [moved(rng, each) for each in truth]
    scores = analysed(truth, predicted, "panoptic").scores["panoptic"]
    expected = panopticapi(truth, predicted)
    quality = [iou / (tp + (fp + fn) / 2) for tp, fp, fn, iou in expected.values()]
    assert scores.metrics.get("panoptic/PQ") == (pytest.approx(np.mean(quality)) if quality else None)
    rows = {row.label: row for row in scores.rows}
    for (label, (tp, _, fn, iou)), each in zip(expected.items(), quality, strict=True):
        assert rows[label].quality == pytest.approx(each)
        assert (rows[label].ap, rows[label].ap50) == (None, None)
        assert scores.metrics["panoptic/SQ"] <= 1 and iou <= tp
        assert tp + fn == rows[label].true_positives + rows[label].missed


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_semantic_iou_is_counted_over_the_pixels_of_all_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = [], []
    for _ in range(3):
        numbered, labels, _ = random_segments(rng, 6)
        by_class = np.where(numbered == VOID, VOID, np.array([*labels, VOID])[numbered])
        truth.append((by_class, list(range(CLASSES)), [False] * CLASSES))
        predicted.append((np.roll(by_class, rng.integers(-4, 5, 2), (0, 1)), list(range(CLASSES)), [False] * CLASSES))
    scores = analysed(truth, predicted, "semantic").scores["semantic"]
    known = [each[0] != VOID for each in truth]
    expected = {}
    for label in range(CLASSES):
        true = np.concatenate([each[0][inside] == label for each, inside in zip(truth, known, strict=True)])
        said = np.concatenate([each[0][inside] == label for each, inside in zip(predicted, known, strict=True)])
        if (true | said).any():
            expected[label] = (true & said).sum() / (true | said).sum()
    assert scores.metrics["semantic/mIoU"] == pytest.approx(np.mean(list(expected.values())))
    rows = {row.label: row.quality for row in scores.rows if row.label >= 0}
    assert {label: rows[label] for label in expected} == pytest.approx(expected)


def test_a_segment_on_what_nobody_has_labelled_is_ignored() -> None:
    true = np.full((24, 32), VOID)
    true[:, :16] = 0
    found = np.zeros((24, 32), int)
    found[:, 18:] = 1
    analysis = analysed([(true, [2], [False])], [(found, [2, 3], [False, False])], "panoptic")
    shown = analysis.show(id="a", label="a", run="a", step=0, epoch=None)
    assert shown.images[0] is not None
    objects = shown.images[0]["panoptic"]
    assert (objects.e[0], objects.g[0]) == ("ti", [0, -1])
    assert objects.o[0] == 1.0  # two columns lie in the void, and void belongs to no union
    assert shown.metrics == {"panoptic/PQ": 1.0, "panoptic/SQ": 1.0, "panoptic/RQ": 1.0}
    assert objects.m and not objects.b


def test_tasks_of_an_image_are_judged_apart() -> None:
    rng = np.random.default_rng(3)
    segments = random_segments(rng, 5)
    box = Detections([1], [[2, 2, 10, 10]])
    said = Detections([1], [[2, 2, 10, 10]], scores=[0.9])
    truth = {1: {"instances": box, "panoptic": detections(segments, predicted=False)}, 2: {"instances": box}}
    predictions = {1: {"instances": said, "panoptic": detections(segments, predicted=True)}, 2: {"instances": said}}
    evaluation = analyse(sample_sheet(truth, CLASSES, **SIZE), prediction_sheet(predictions, CLASSES, **SIZE)).show(
        id="a", label="a", run="a", step=0, epoch=None
    )
    assert evaluation.classes["instances"][0].true_positives == 2
    assert evaluation.classes["panoptic"][0].true_positives == len(segments[1])
    assert evaluation.metrics["panoptic/PQ"] == 1
    assert [sorted(each or {}) for each in evaluation.images] == [["instances", "panoptic"], ["instances"]]


def test_what_was_asked_of_the_model_only_is_judged() -> None:
    """Truth of a task that the model was not asked is nothing that it has missed."""
    truth = {1: {"instances": Detections([0], [[0, 0, 5, 5]]), "semantic": Detections([0], masks=[np.ones((24, 32))])}}
    predictions = {1: {"instances": Detections([], scores=[])}}
    scores = analyse(sample_sheet(truth, CLASSES, **SIZE), prediction_sheet(predictions, CLASSES, **SIZE)).scores
    assert list(scores) == ["instances"]
    assert scores["instances"].rows[0].missed == 1
