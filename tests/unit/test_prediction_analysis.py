"""From detections to what a document shows: nothing lost, nothing invented, whatever an image has."""

from __future__ import annotations

import contextlib
import io
import math

import msgspec
import numpy as np
import pytest
from pycocotools import mask as coco

from tests.predicting import (
    HEIGHT,
    WIDTH,
    ellipse,
    prediction_sheet,
    random_detections,
    sample_sheet,
)
from unified_tracker import RecordError
from unified_tracker.predictions import Detections
from unified_tracker.predictions._analysis import MOST_CONFUSED, analyse, show_evaluation, show_sample
from unified_tracker.predictions._document import Document, ShownEvaluation, ShownObjects
from unified_tracker.predictions._sheets import MOST_OBJECTS, pack

BOX = [10.0, 10.0, 50.0, 50.0]


def show(truth: dict, predicted: dict, classes: int = 3, threshold: float = 0.3) -> ShownEvaluation:
    sheets = sample_sheet(truth, classes), prediction_sheet(predicted, classes, threshold=threshold)
    return show_evaluation(*sheets, id="e1", label="iter 5", run="r", step=5, epoch=0.5)


def instances(evaluation: ShownEvaluation, index: int = 0) -> ShownObjects:
    image = evaluation.images[index]
    assert image is not None
    return image["instances"]


def bitmap(counts: str) -> np.ndarray:
    return np.asarray(coco.decode({"size": [HEIGHT, WIDTH], "counts": counts.encode()}), bool)


def test_a_document_of_everything_comes_back_from_json() -> None:
    truth, predicted = random_detections(1, images=4, objects=8, classes=3, masks=True, keypoints=5)
    sample, sheet = sample_sheet({**truth, "none": None}), prediction_sheet(predicted)
    evaluation = show_evaluation(sample, sheet, id="e1", label="iter 5", run="r", step=5, epoch=None)
    document = Document("t", "d", sample.classes, sample.category_ids, show_sample(sample), [evaluation])
    assert msgspec.json.decode(msgspec.json.encode(document), type=Document) == document


def test_images_that_were_not_evaluated_are_none_and_keep_their_place() -> None:
    empty = Detections([], scores=[])
    evaluation = show({1: Detections([]), "b": Detections([]), 3: None}, {3: empty, "b": empty, "unknown": empty})
    assert [each is None for each in evaluation.images] == [True, False, False]


def test_without_truth_a_prediction_is_of_no_kind_and_no_class_is_judged() -> None:
    evaluation = show({1: None}, {1: Detections([1], [BOX], scores=[0.8])})
    assert instances(evaluation) == ShownObjects(l=[1], b=BOX, s=[0.8])
    assert (evaluation.classes, evaluation.confusion) == ({}, {})


def test_an_empty_image_makes_every_prediction_background_and_has_no_average_precision() -> None:
    evaluation = show({1: Detections([])}, {1: Detections([2, 2], [BOX, BOX], scores=[0.8, 0.9])})
    assert instances(evaluation).e == ["bb", "bb"]
    every, one = evaluation.classes["instances"]
    assert (every.label, one.label) == (-1, 2)
    assert (one.ap, one.recall, one.precision, one.recall_at_precision) == (None, None, 0.0, None)
    assert (one.true_positives, one.false_positives, one.missed) == (0, 2, 0)


def test_an_image_without_predictions_misses_everything() -> None:
    evaluation = show({1: Detections([0, 1], [BOX, BOX])}, {1: Detections([], np.zeros((0, 4)), scores=[])})
    assert instances(evaluation) == ShownObjects(g=[[], []], e=["", ""])
    every = evaluation.classes["instances"][0]
    assert (every.ap, every.missed, every.precision, every.recall, every.recall_at_precision) == (0, 2, None, 0, 0)


def test_nothing_at_all_is_no_error() -> None:
    evaluation = show({}, {})
    assert (evaluation.images, evaluation.classes) == ([], {})
    assert show_sample(sample_sheet({})) == []


def test_predictions_are_sorted_by_score_and_equal_ones_stay_in_order() -> None:
    boxes = [[0, 0, 10 + index, 10] for index in range(4)]
    objects = instances(show({1: None}, {1: Detections([0, 1, 2, 0], boxes, scores=[0.5, 0.9, 0.5, 0.7])}))
    assert objects.l == [1, 0, 0, 2]
    assert objects.b[2::4] == [11, 13, 10, 12]


def test_boxes_are_within_a_tenth_of_a_pixel() -> None:
    truth, predicted = random_detections(2, images=1, objects=40, classes=3)
    shown = np.array(instances(show(truth, predicted)).b).reshape(-1, 4)
    order = np.argsort(-predicted[1].scores, kind="stable")
    assert np.abs(shown - predicted[1].boxes[order]).max() <= 0.0501


@pytest.mark.parametrize("score", [0.3, np.float32(0.3), 0.29996, 0.57, np.float32(0.57), 1.0, 0.0, 1e-9])
def test_a_shown_score_is_never_above_the_real_one(score: float) -> None:
    (shown,) = instances(show({1: None}, {1: Detections([0], [BOX], scores=[score])})).s
    assert float(score) - 1e-4 < shown <= float(score)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_a_diverged_model_says_is_shown_as_numbers(value: float) -> None:
    found = Detections([0, 0], [[value, 0, 10, 10], BOX], scores=[0.9, value if math.isnan(value) else 0.8])
    evaluation = show({1: Detections([0], [BOX])}, {1: found})
    content = msgspec.json.encode(evaluation)
    assert msgspec.json.decode(content, type=ShownEvaluation) == evaluation
    assert sorted(instances(evaluation).e[0]) == ["b", "t"]


def test_polygons_and_run_lengths_and_bitmaps_are_the_same_mask() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:60, 30:90] = True
    compressed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = [30 * HEIGHT + 20, *[40, 80] * 59, 40, 60 + 70 * HEIGHT]
    polygon = [[30, 20, 90, 20, 90, 60, 30, 60]]
    forms = {
        "bitmap": mask[None],
        "list of bitmaps": [mask],
        "compressed": [compressed],
        "text": [{"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}],
        "uncompressed": [{"size": [HEIGHT, WIDTH], "counts": counts}],
        "polygon": [polygon],
    }
    shown = show_sample(sample_sheet({name: Detections([0], masks=masks) for name, masks in forms.items()}))
    for image in shown:
        assert image.truth is not None
        assert (bitmap(image.truth["instances"].m[0]) == mask).all(), image.id


def test_an_object_of_several_polygons_is_one_mask_and_degenerate_polygons_enclose_nothing() -> None:
    two = [[10, 10, 20, 10, 20, 20, 10, 20], [40, 40, 50, 40, 50, 50, 40, 50], [1, 1, 5, 5]]
    (image,) = show_sample(sample_sheet({1: Detections([0, 0, 0], masks=[two, [[1, 1, 5, 5]], []])}))
    assert image.truth is not None
    assert [int(bitmap(each).sum()) for each in image.truth["instances"].m] == [200, 0, 0]


@pytest.mark.parametrize("corner", [math.nan, math.inf, -1e300])
def test_a_polygon_to_infinity_is_a_mask_all_the_same(corner: float) -> None:
    (image,) = show_sample(sample_sheet({1: Detections([0], masks=[[[0, 0, corner, 0, corner, 50, 0, 50]]])}))
    assert image.truth is not None and bitmap(image.truth["instances"].m[0]).shape == (HEIGHT, WIDTH)


def test_masks_that_overlap_stay_whole() -> None:
    masks = [ellipse([10, 10, 60, 60]), ellipse([30, 30, 80, 80])]
    objects = instances(show({1: None}, {1: Detections([0, 1], masks=masks, scores=[0.9, 0.8])}))
    assert [(bitmap(shown) == mask).all() for shown, mask in zip(objects.m, masks, strict=True)] == [True, True]


def test_a_class_above_255_keeps_its_label() -> None:
    evaluation = show({1: Detections([1202], [BOX])}, {1: Detections([1202], [BOX], scores=[0.9])}, classes=1203)
    assert [row.label for row in evaluation.classes["instances"]] == [-1, 1202]
    assert instances(evaluation).l == [1202]
    assert MOST_CONFUSED < 1203 and evaluation.confusion == {}


def test_crowd_regions_are_shown_and_are_nothing_to_find() -> None:
    truth = Detections([0, 0], [BOX, [60, 60, 110, 110]], crowd=[False, True])
    (image,) = show_sample(sample_sheet({1: truth}))
    assert image.truth is not None and image.truth["instances"].c == [1]
    boxes = [BOX, [70, 70, 80, 80], [80, 80, 90, 90]]
    evaluation = show({1: truth}, {1: Detections([0, 0, 0], boxes, scores=[0.9, 0.8, 0.7])})
    every = evaluation.classes["instances"][0]
    assert (every.true_positives, every.false_positives, every.missed) == (1, 0, 0)
    assert every.ap == pytest.approx(1)
    assert instances(evaluation).e[0] == "tii"


def test_counts_are_those_above_the_score_threshold() -> None:
    truth = {1: Detections([0, 0], [BOX, [60, 60, 110, 110]])}
    found = Detections([0, 0, 1], [BOX, [60, 60, 110, 110], BOX], scores=[0.9, 0.4, 0.5])
    every = show(truth, {1: found}, threshold=0.45).classes["instances"][0]
    assert (every.true_positives, every.false_positives, every.missed) == (1, 1, 1)
    assert (every.precision, every.recall) == (0.5, 0.5)


def test_recall_at_precision_is_the_highest_recall_with_nine_of_ten_right() -> None:
    boxes = [[0, index * 10, 8, index * 10 + 8] for index in range(12)]
    truth = {1: Detections([0] * 12, boxes)}
    wrong = [[100, 100, 110, 110], [120, 100, 130, 110]]
    found = Detections(
        [0] * 13, [*boxes[:5], wrong[0], *boxes[5:9], wrong[1], *boxes[9:11]], scores=np.linspace(1, 0.5, 13)
    )
    assert show(truth, {1: found}).classes["instances"][0].recall_at_precision == 9 / 12


def test_each_object_and_each_prediction_stands_once_in_the_confusion_matrix() -> None:
    truth, predicted = random_detections(9, images=30, objects=15, classes=4)
    evaluation = show(truth, predicted, classes=4, threshold=0.5)
    matrix = np.array(evaluation.confusion["instances"])
    ignored = sum(
        letter == "i" and score >= 0.5
        for image in evaluation.images
        if image
        for letter, score in zip(image["instances"].e[0], image["instances"].s, strict=True)
    )
    true = np.concatenate([each.labels[~each.crowd] for each in truth.values()])
    said = np.concatenate([each.labels[each.scores >= 0.5] for each in predicted.values()])
    assert matrix[:-1].sum(1).tolist() == np.bincount(true, minlength=4).tolist()
    assert matrix[:, :-1].sum() == len(said) - ignored
    rows = {row.label: row for row in evaluation.classes["instances"]}
    assert matrix.diagonal()[:-1].tolist() == [rows[label].true_positives for label in range(4)]
    assert np.triu(matrix[:-1, :-1], 1).sum() > 0 and matrix[-1, -1] == 0


def test_one_object_found_as_another_class_is_confused_and_not_missed() -> None:
    matrix = show({1: Detections([0], [BOX])}, {1: Detections([2, 1], [BOX, BOX], scores=[0.9, 0.8])}).confusion
    assert matrix["instances"] == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_metrics_of_the_evaluation_stand_beside_those_of_the_sample_and_none_is_nan() -> None:
    sheet = prediction_sheet({1: {"semantic": Detections([0], masks=[ellipse(BOX)], scores=[1])}})
    sheet.metrics.update({"val/bbox/mAP": 0.4, "val/bbox/mAP_small": math.nan})
    sample = sample_sheet({1: {"semantic": Detections([0], masks=[ellipse(BOX)])}})
    shown = show_evaluation(sample, sheet, id="e", label="l", run="r", step=1, epoch=None)
    assert shown.metrics == {"semantic/mIoU": 1.0, "val/bbox/mAP": 0.4}


def test_keypoints_are_shown_and_a_model_without_them_is_not_judged_by_them() -> None:
    points = np.array([[[12.3456, 20, 2], [30, 40, 0]]])
    truth = {1: Detections([0], [BOX], keypoints=points)}
    with_points = show(truth, {1: Detections([0], [BOX], scores=[0.9], keypoints=points.astype(np.float32))})
    assert instances(with_points).k == [[12.35, 20, 2, 30, 40, 0]]
    assert with_points.metrics == pytest.approx({"keypoints/AP": 1.0, "keypoints/AP50": 1.0})
    assert show(truth, {1: Detections([0], [BOX], scores=[0.9])}).metrics == {}
    assert show(truth, {1: Detections([], scores=[])}).metrics == {}


def test_objects_with_keypoints_only_are_compared_by_the_box_around_what_is_labelled() -> None:
    points = np.array([[[10, 10, 2], [50, 50, 1], [0, 0, 0]]])
    evaluation = show({1: Detections([0], keypoints=points)}, {1: Detections([0], [BOX], scores=[0.9])})
    assert (instances(evaluation).e[0], instances(evaluation).o) == ("t", [1.0])


def test_more_than_300_predictions_leave_the_best_300() -> None:
    scores = np.random.default_rng(0).permutation(1000).astype(np.float32) / 1000
    boxes = np.tile(np.float32(BOX), (1000, 1))
    boxes[:, 2] += np.arange(1000, dtype=np.float32)
    objects = pack(Detections(np.zeros(1000, int), boxes, scores=scores), HEIGHT, WIDTH, 3, predicted=True)
    best = np.argsort(-scores)[:MOST_OBJECTS]
    assert objects.scores is not None and objects.boxes is not None
    assert len(objects) == 300 and (objects.scores.values() == scores[best]).all()
    assert (objects.boxes.values() == boxes[best]).all()
    truth = pack(Detections(np.zeros(1000, int), boxes), HEIGHT, WIDTH, 3, predicted=False)
    assert len(truth) == 1000


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_packed_floats_are_those_that_were_given(dtype: type) -> None:
    values = np.random.default_rng(0).random((7, 4)).astype(dtype)
    objects = pack(Detections([0] * 7, values, scores=values[:, 0]), HEIGHT, WIDTH, 1, predicted=True)
    assert objects.boxes is not None and objects.scores is not None
    assert objects.boxes.values().tolist() == values.tolist()
    assert objects.scores.values().tolist() == values[:, 0].tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Detections([0, 3], [BOX, BOX], scores=[1, 1]), "labels must be 0 to 2, not 0 to 3"),
        (Detections([-1], [BOX], scores=[1]), "labels must be 0 to 2, not -1 to -1"),
        (Detections([0], [BOX]), "predictions need scores"),
        (Detections([0], scores=[1]), "objects need boxes, masks or keypoints"),
        (Detections([0], [BOX, BOX], scores=[1]), "boxes must have the shape (1, 4), not (2, 4)"),
        (Detections([0], [BOX[:3]], scores=[1]), "boxes must have the shape (1, 4), not (1, 3)"),
        (Detections([0], BOX, scores=[1]), "boxes must have 2 dimensions, not the shape (4,)"),
        (Detections([0], [BOX], scores=[1, 2]), "scores must have the shape (1,), not (2,)"),
        (Detections([0], masks=[], scores=[1]), "there are 0 masks for 1 objects"),
        (
            Detections([0], masks=np.zeros((1, 5, 6), bool), scores=[1]),
            "masks must have the size of the image, (120, 160), not (5, 6)",
        ),
        (Detections([0], [BOX], scores=[1], crowd=[True, False]), "crowd has 2 values for 1 objects"),
        (
            Detections([0], [BOX], scores=[1], keypoints=np.zeros((1, 5, 2))),
            "keypoints must have the shape (1, k, 3), not (1, 5, 2)",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_and_says_how(given: Detections, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        pack(given, HEIGHT, WIDTH, 3, predicted=True)
    assert str(caught.value) == message


class Tensor:
    """Quacks like a tensor on a device."""

    def __init__(self, values: np.ndarray, steps: tuple[str, ...] = ()) -> None:
        self.values, self.steps = values, steps

    def detach(self) -> Tensor:
        return Tensor(self.values, (*self.steps, "detach"))

    def cpu(self) -> Tensor:
        return Tensor(self.values, (*self.steps, "cpu"))

    def numpy(self) -> np.ndarray:
        assert self.steps == ("detach", "cpu")
        return self.values


def test_tensors_leave_their_device_and_their_gradients() -> None:
    found = Detections(Tensor(np.array([1])), Tensor(np.float32([BOX])), scores=Tensor(np.float32([0.5])))
    assert instances(show({1: None}, {1: found})).b == BOX


def test_analysing_prints_nothing() -> None:
    """pycocotools prints while it evaluates."""
    truth, predicted = random_detections(4, images=2, objects=5, classes=3, masks=True, keypoints=17)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        analyse(sample_sheet(truth), prediction_sheet(predicted))
    assert said.getvalue() == ""
