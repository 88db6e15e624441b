"""MMDetection's names, units and arguments, translated. No training."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet", reason="MMDetection is not installed: run `nox -s frameworks`")

import torch
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import LogProcessor

from unified_tracker import ConfigurationError
from unified_tracker_mmdet import MMDetWandbHook, UnifiedTrackerHook
from unified_tracker_mmdet._arguments import read_init_kwargs
from unified_tracker_mmdet._metrics import canonical_evaluation, canonical_training, headline, per_class, scalars
from unified_tracker_mmdet._scalars import TrainingScalars


@pytest.mark.parametrize(
    ("own", "canonical"),
    [
        ({"coco/bbox_mAP": 0.4, "coco/bbox_mAP_s": 0.1}, {"val/bbox/mAP": 0.4, "val/bbox/mAP_small": 0.1}),
        ({"coco/segm_mAP_75": 0.4, "coco/segm_mAP_l": -1.0}, {"val/segm/mAP_75": 0.4}),
        ({"coco/AR@100": 0.5, "coco/AR_s@1000": 0.2}, {"val/bbox/AR_100": 0.5, "val/bbox/AR_small_1000": 0.2}),
        ({"coco/bbox_AR@300": 0.5}, {"val/bbox/AR_300": 0.5}),
        ({"coco/keypoints_mAP": 0.5}, {"val/keypoints/mAP": 0.5}),
        ({"coco/AP": 0.6, "coco/AP .5": 0.8, "coco/AP (M)": 0.5, "coco/AR": 0.7, "coco/AR .5": 0.8},
         {"val/keypoints/mAP": 0.6, "val/keypoints/mAP_50": 0.8, "val/keypoints/mAP_medium": 0.5,
          "val/keypoints/AR_20": 0.7}),
        ({"pascal_voc/mAP": 0.7, "pascal_voc/AP50": 0.7, "pascal_voc/recall@100@0.5": 0.9},
         {"val/bbox/mAP": 0.7, "val/bbox/mAP_50": 0.7}),
        ({"cityscapes/mAP": 0.3, "cityscapes/AP@50": 0.5}, {"val/segm/mAP": 0.3, "val/segm/mAP_50": 0.5}),
        ({"lvis/bbox_AP": 0.3, "lvis/bbox_APs": 0.1, "lvis/bbox_APr": 0.2},
         {"val/bbox/mAP": 0.3, "val/bbox/mAP_small": 0.1, "val/bbox/APr": 0.2}),
        ({"coco_panoptic/PQ": 40.0, "coco_panoptic/PQ_th": 50.0}, {"val/panoptic/PQ": 0.4, "val/panoptic/PQ_th": 0.5}),
        ({"aAcc": 90.0, "mIoU": 50.0}, {"val/semantic/aAcc": 0.9, "val/semantic/mIoU": 0.5}),
        ({"coco/bbox_mAP": math.nan, "motchallenge-metric/MOTA": 0.5}, {}),
        ({"day/coco/bbox_mAP": 0.4, "night/coco/bbox_mAP": 0.2}, {"val/day/bbox/mAP": 0.4, "val/night/bbox/mAP": 0.2}),
        ({"coco/bbox_mAP": 0.4, "lvis/bbox_AP": 0.2}, {"val/coco/bbox/mAP": 0.4, "val/lvis/bbox/mAP": 0.2}),
    ],
)  # fmt: skip
def test_evaluations_have_canonical_names_and_units(own: dict[str, float], canonical: dict[str, float]) -> None:
    assert canonical_evaluation(own) == pytest.approx(canonical)


def test_results_that_are_no_scalars_are_left_out() -> None:
    given = {"a": 1, "b": np.float32(0.5), "c": torch.tensor([2.0]), "d": [1, 2], "e": "x", "f": np.ones(3), "g": None}
    assert scalars(given) == {"a": 1.0, "b": 0.5, "c": 2.0}


def test_boxes_go_before_masks_in_the_headline() -> None:
    own = {"coco/segm_mAP": 0.3, "coco/segm_mAP_50": 0.5, "coco/bbox_mAP": 0.4, "coco/bbox_mAP_m": -1.0}
    assert list(headline(own).items()) == [
        ("bbox.mAP", 0.4),
        ("coco.bbox_mAP", 0.4),
        ("segm.mAP", 0.3),
        ("coco.segm_mAP", 0.3),
    ]


def test_classes_with_a_slash_keep_their_names() -> None:
    own = {"coco/Head/Phone_precision": 0.4, "coco/cup_precision": math.nan, "coco/segm_mAP": 0.2}
    assert per_class(own, ["Head/Phone", "cup"]) == {"segm": [("Head/Phone", 0.4), ("cup", None)]}


def test_parts_of_the_loss_have_canonical_names() -> None:
    own = {
        "train/loss": 1.0,
        "train/loss_cls": 0.5,
        "train/d0.loss_cls": 0.2,
        "train/kd_loss": 0.1,
        "memory": 2.0,
        "time": 0.5,
    }
    assert canonical_training(own, 4) == {
        "train/loss": 1.0,
        "train/loss_cls": 0.5,
        "train/loss_d0.cls": 0.2,
        "train/loss_kd": 0.1,
        "perf/gpu_memory_bytes": 2.0 * 2**20,
        "perf/iter_time_s": 0.5,
        "perf/images_per_s": 8.0,
    }


@pytest.mark.parametrize("hierarchy", [False, True])
def test_rows_between_those_of_mmengine_follow_its_rules(hierarchy: bool) -> None:
    """The row that is read from the message hub equals the one that `LogProcessor` makes of it."""
    rules = [
        {"data_src": "loss", "log_name": "loss_epoch", "method_name": "max", "window_size": "epoch"},
        {"data_src": "loss", "log_name": "loss_all", "method_name": "mean", "window_size": "global"},
        {"data_src": "lr", "method_name": "min", "window_size": 4},
    ]
    rng = np.random.default_rng(0)
    names = ("train/loss", "train/lr", "train/grad_norm", "train/time", "train/data_time", "train/acc", "val/loss")
    hub = SimpleNamespace(
        log_scalars={name: HistoryBuffer(list(rng.random(20)), [1] * 20) for name in names}, runtime_info={}
    )
    runner: Any = SimpleNamespace(
        iter=19,
        epoch=1,
        max_epochs=3,
        max_iters=60,
        message_hub=hub,
        model=None,
        train_loop=SimpleNamespace(dataloader=[0] * 10),
    )
    runner._train_loop = runner.train_loop
    runner.log_processor = LogProcessor(window_size=7, custom_cfg=rules, log_with_hierarchy=hierarchy)
    reader = TrainingScalars(runner)
    from_hub = reader.read(9)
    row, _ = runner.log_processor.get_log_after_iter(runner, 9, "train")
    expected = {name: float(value) for name, value in row.items() if name not in {"epoch", "iter"}}
    assert from_hub == expected
    assert reader.read(9) == expected  # now taken from the processor
    assert all(type(value) is float for value in from_hub.values())


def test_init_kwargs_are_sorted() -> None:
    given = read_init_kwargs(
        {"project": "p", "notes": "n", "entity": "e", "mode": "offline", "resume": True, "id": "a1", "settings": {}},
        {"wandb": {"mode": "online"}, "mlflow": {"tracking_uri": "u"}},
    )
    assert given.run == {"project": "p", "description": "n"}
    assert given.options == {"wandb": {"entity": "e", "mode": "online"}, "mlflow": {"tracking_uri": "u"}}
    assert (given.id, given.ignored) == ("a1", ("settings",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tracker": "mlfow"},
        {"tracker": "mlflow", "options": {"mlflow": {"traking_uri": "x"}}},
        {"tracker": "mlflow", "init_kwargs": {"id": "../elsewhere"}},
        {"tracker": "mlflow", "init_kwargs": "project"},
        {"tracker": "mlflow", "interval": 0},
    ],
)
def test_wrong_configuration_is_an_error_before_training(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        HOOKS.build({"type": "UnifiedTrackerHook", **wrong})


def test_misspelt_argument_is_an_error_before_training() -> None:
    with pytest.raises(TypeError, match="intervall"):
        HOOKS.build({"type": "UnifiedTrackerHook", "intervall": 3})


def test_hooks_are_found_by_name_and_by_dotted_path() -> None:
    assert MMDET_HOOKS.get("UnifiedTrackerHook") is UnifiedTrackerHook
    assert MMDET_HOOKS.get("MMDetWandbHook") is MMDetWandbHook
    assert MMDET_HOOKS.get("unified_tracker_mmdet.UnifiedTrackerHook") is UnifiedTrackerHook


def test_the_old_hook_keeps_the_old_names_in_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert MMDetWandbHook()._settings.backends["wandb"]["names"] == "mmdet2"
    new = MMDetWandbHook(options={"wandb": {"names": None, "entity": "us"}})._settings.backends["wandb"]
    assert "names" not in new and new["entity"] == "us"
    assert "names" not in UnifiedTrackerHook("wandb")._settings.backends["wandb"]


def test_run_is_asked_for_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFIED_TRACKER", "off")
    with pytest.raises(RuntimeError, match="once training"):
        _ = UnifiedTrackerHook().run


def test_two_tracker_hooks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFIED_TRACKER", "off")
    hooks = [UnifiedTrackerHook(), MMDetWandbHook()]
    with pytest.raises(ConfigurationError, match="two tracker hooks"):
        hooks[0].before_run(SimpleNamespace(hooks=hooks))
