"""The Parquet tables of an evaluation, read back with pandas and pyarrow."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from pyarrow import parquet

from tests.predicting import ellipse, prediction_sheet, random_detections, sample_sheet
from unified_tracker.predictions import Detections
from unified_tracker.predictions._analysis import Analysis, analyse
from unified_tracker.predictions._coco_results import coco_results
from unified_tracker.predictions._parquet import predictions_parquet, truth_parquet


def read(content: bytes) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(content))


def analysed(truth: dict, predicted: dict) -> Analysis:
    return analyse(sample_sheet(truth), prediction_sheet(predicted))


def test_scores_and_corners_are_exactly_those_of_the_results_json() -> None:
    truth, predicted = random_detections(11, images=5, objects=30, classes=3, masks=True)
    analysis = analysed(truth, predicted)
    table = read(predictions_parquet(analysis)).sort_values(["image_id", "index"])
    results = coco_results(analysis.sample, analysis.predictions)
    assert table["score"].tolist() == [each["score"] for each in results]
    assert table[["x1", "y1"]].to_numpy().tolist() == [each["bbox"][:2] for each in results]
    boxes = np.concatenate([each.boxes for each in predicted.values()])
    assert table[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == boxes.tolist()
    assert table["category_id"].tolist() == [each["category_id"] for each in results]
    assert table["rle"].tolist() == [each["segmentation"]["counts"] for each in results]


def test_both_tables_tell_the_same_matches_by_the_indices_of_the_data_set_and_the_framework() -> None:
    truth, predicted = random_detections(12, images=6, objects=30, classes=3)
    analysis = analysed(truth, predicted)
    found = read(predictions_parquet(analysis))
    true = read(truth_parquet(analysis))
    right = found[found["kind"] == "true positive"]
    assert len(right) > 10
    pairs = right.merge(true, left_on=["image_id", "match"], right_on=["image_id", "index"], suffixes=("", "_true"))
    assert (pairs["index"] == pairs["prediction"]).all()
    assert (pairs["score"] == pairs["score_true"]).all()
    assert (pairs["category"] == pairs["category_true"]).all()
    assert len(pairs) == len(right) == true["prediction"].notna().sum()
    first = pairs.iloc[0]
    image_id = int(first["image_id"])
    assert predicted[image_id].scores[first["index"]] == first["score"]
    assert truth[image_id].labels[int(first["match"])] + 1 == first["category_id"]


def test_what_nobody_has_said_is_null() -> None:
    analysis = analysed({1: None}, {1: Detections([0], masks=[ellipse([0, 0, 9, 9])], scores=[0.5])})
    (row,) = read(predictions_parquet(analysis)).to_dict("records")
    assert all(pd.isna(row[name]) for name in ("x1", "match", "kind", "iou", "keypoints"))
    assert len(read(truth_parquet(analysis))) == 0


def test_every_kind_has_its_word_and_missed_objects_no_prediction() -> None:
    truth = Detections([0, 1, 2], [[10, 10, 50, 50], [80, 10, 100, 30], [90, 50, 150, 110]], crowd=[False, False, True])
    boxes = [
        [10, 10, 50, 50],
        [11, 10, 50, 50],
        [10, 10, 50, 50],
        [10, 10, 50, 28],
        [0, 100, 9, 110],
        [100, 60, 110, 70],
    ]
    found = Detections([0, 0, 1, 0, 0, 2], boxes, scores=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    analysis = analysed({"Käfer 1": truth}, {"Käfer 1": found})
    table = read(predictions_parquet(analysis))
    words = ["true positive", "duplicate", "wrong class", "badly placed", "background", "ignored"]
    assert table["kind"].tolist() == words
    assert table["image_id"].tolist() == ["Käfer 1"] * 6
    true = read(truth_parquet(analysis))
    assert true["prediction"].fillna(-1).tolist() == [0, -1, -1]
    assert true["crowd"].tolist() == [False, False, True]


def test_an_evaluation_without_any_prediction_is_a_table_without_rows() -> None:
    analysis = analysed({1: Detections([])}, {1: Detections([], scores=[])})
    schema = parquet.read_schema(io.BytesIO(predictions_parquet(analysis)))
    assert [schema.field(name).type for name in ("image_id", "score", "match")] == ["string", "double", "int32"]
    assert schema.metadata[b"iou"] == b"0.5"
