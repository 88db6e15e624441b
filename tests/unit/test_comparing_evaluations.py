"""What an image amounts to, and what got fixed and what broke between two evaluations."""

from __future__ import annotations

import numpy as np
import pytest

from tests.predicting import ellipse, prediction_sheet, random_detections, sample_sheet
from unified_tracker.predictions import Detections
from unified_tracker.predictions._analysis import show_evaluation, show_sample
from unified_tracker.predictions._comparison import ImageChange, compare
from unified_tracker.predictions._document import ShownEvaluation
from unified_tracker.predictions._summary import ImageSummary, summarise

TRUTH = Detections(
    [0, 1, 2, 2], [[0, 0, 20, 20], [40, 0, 60, 20], [80, 0, 100, 20], [0, 60, 50, 110]], crowd=[0, 0, 0, 1]
)
SAMPLE = sample_sheet({1: TRUTH, 2: None, "three": Detections([])})
IMAGES = show_sample(SAMPLE)


def evaluation(predictions: dict, threshold: float = 0.3) -> ShownEvaluation:
    sheet = prediction_sheet(predictions, threshold=threshold)
    return show_evaluation(SAMPLE, sheet, id="e", label="iter 1", run="r", step=1, epoch=None)


BEFORE = Detections(
    [0, 0, 2, 1, 1, 2],
    [[0, 0, 20, 20], [1, 0, 20, 20], [40, 0, 60, 20], [80, 0, 90, 20], [120, 60, 140, 80], [5, 65, 20, 80]],
    scores=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
)
AFTER = Detections(
    [1, 0, 1, 1],
    [[40, 0, 60, 20], [0, 0, 20, 20], [121, 60, 141, 80], [0, 90, 10, 100]],
    scores=[0.9, 0.2, 0.5, 0.4],
)


def test_a_summary_counts_what_is_right_wrong_and_missed() -> None:
    assert summarise(IMAGES, evaluation({1: BEFORE, 2: BEFORE, "three": Detections([], scores=[])})) == [
        ImageSummary(1, "1.jpg", 1, 4, 2, {"background": 1, "wrong class": 2, "badly placed": 0, "duplicate": 1}),
        ImageSummary(
            "three", "three.jpg", 0, 0, 0, {"background": 0, "wrong class": 0, "badly placed": 0, "duplicate": 0}
        ),
    ]


def test_f1_of_an_image_is_1_where_nothing_is_and_nothing_was_said() -> None:
    first, second = summarise(IMAGES, evaluation({1: BEFORE, "three": Detections([], scores=[])}))
    assert first.f1 == pytest.approx(2 / 8)
    assert second.f1 == 1


def test_a_summary_at_another_threshold_is_that_of_the_predictions_above_it() -> None:
    truth, predicted = random_detections(5, images=1, objects=30, classes=3)
    sample, everything = sample_sheet(truth), prediction_sheet(predicted, threshold=0.1)
    whole = show_evaluation(sample, everything, id="e", label="l", run="r", step=1, epoch=None)
    kept = predicted[1].scores >= 0.6
    best = Detections(predicted[1].labels[kept], predicted[1].boxes[kept], scores=predicted[1].scores[kept])
    part = show_evaluation(sample, prediction_sheet({1: best}), id="e", label="l", run="r", step=1, epoch=None)
    images = show_sample(sample)
    assert summarise(images, whole, threshold=0.6) == summarise(images, part)


def test_found_and_lost_objects_and_new_and_gone_mistakes_are_told() -> None:
    comparison = compare(IMAGES, evaluation({1: BEFORE}), evaluation({1: AFTER}))
    # The object of class 0 scores below the threshold now; the mistake at (120, 60) stays, moved by a pixel.
    assert comparison.changes == [ImageChange(1, "1.jpg", found=[1], lost=[0], new=[2], gone=[1, 2, 3])]
    assert (comparison.changes[0].fixed, comparison.changes[0].broken) == (4, 2)
    assert comparison.left_out == [2, "three"]


def test_an_evaluation_compared_with_itself_has_changed_nothing() -> None:
    truth, predicted = random_detections(7, images=5, objects=20, classes=3, masks=True)
    sample, sheet = sample_sheet(truth), prediction_sheet(predicted)
    shown = show_evaluation(sample, sheet, id="e", label="l", run="r", step=1, epoch=None)
    changes = compare(show_sample(sample), shown, shown).changes
    assert [(each.fixed, each.broken) for each in changes] == [(0, 0)] * 5


def test_mistakes_without_boxes_are_recognised_by_their_masks() -> None:
    masks = [ellipse([10, 10, 40, 40]), ellipse([60, 60, 90, 90])]
    sides = [
        evaluation({1: Detections([0], scores=[0.9], masks=[masks[index]]), "three": Detections([], scores=[])})
        for index in (0, 0, 1)
    ]
    assert compare(IMAGES, sides[0], sides[1]).changes[0].new == []
    assert compare(IMAGES, sides[0], sides[2]).changes[0].new == [0]


def test_images_of_which_something_else_is_true_now_are_left_out() -> None:
    moved = Detections([0], [[0, 0, 20, 21]])
    other = sample_sheet({"three": Detections([]), 1: moved})
    before = show_evaluation(
        other,
        prediction_sheet({1: BEFORE, "three": Detections([], scores=[])}),
        id="e",
        label="l",
        run="r",
        step=1,
        epoch=None,
    )
    after = evaluation({1: AFTER, "three": Detections([], scores=[])})
    comparison = compare(IMAGES, before, after, images_before=show_sample(other))
    assert [each.id for each in comparison.changes] == ["three"]
    assert comparison.left_out == [1, 2]


def test_a_threshold_that_was_not_computed_is_refused() -> None:
    before, after = evaluation({1: BEFORE}), evaluation({1: AFTER})
    before.ious = [0.6]
    with pytest.raises(ValueError) as caught:
        compare(IMAGES, before, after)
    assert str(caught.value) == "'iter 1' has no matches at IoU 0.5, only at [0.6]"


def test_scores_of_a_summary_are_those_that_the_counts_use() -> None:
    """Rounding must lift no score over a threshold: what the table counts is what the page shows."""
    scores = np.nextafter(np.float32(0.3), np.float32(0))  # prints as 0.3
    predictions = {1: Detections([0], [[0, 0, 20, 20]], scores=[scores])}
    shown = evaluation(predictions)
    assert summarise(IMAGES, shown)[0].true_positives == shown.classes["instances"][0].true_positives == 0
