"""The demo in MMDetection: a Mask R-CNN on a backbone of three convolutions, trained by an unchanged `Runner`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner

from unified_tracker.demo._plan import BATCH, EVALUATE_EVERY, PROJECT, SEED, SIZE, Plan, Progress, Reporter
from unified_tracker.demo.shapes import CATEGORIES, ShapesDataset

CHANNELS: Final = 64
STRIDE: Final = 8


@MODELS.register_module()
class DemoBackbone(BaseModule):
    """Three strided convolutions, the same ones as in the Detectron2 demo."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, CHANNELS)
        self.layers = torch.nn.Sequential(
            *(
                torch.nn.Sequential(
                    torch.nn.Conv2d(before, after, 3, stride=2, padding=1),
                    torch.nn.GroupNorm(8 if before > 3 else 3, after),
                    torch.nn.ReLU(),
                )
                for before, after in pairwise(widths)
            )
        )

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        """Shape (batch, 3, height, width) in, one map of an eighth of the size out."""
        return (self.layers(image),)


class ReportProgress(Hook):
    """Tells the terminal where the training is. Nothing of this is needed for tracking."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Report the step."""
        self._reporter.step(runner.iter + 1, float((outputs or {}).get("loss", float("nan"))))

    def before_val(self, runner: Runner) -> None:
        """Report that an evaluation begins."""
        self._reporter.say(Progress("evaluating", runner.iter))

    def after_train(self, runner: Runner) -> None:
        """Report that the tracker delivers what is left: its hook has the lowest priority."""
        self._reporter.say(Progress("delivering", runner.iter))


def configuration(plan: Plan) -> Config:
    """The configuration that a user would write: data, model, schedule, and one hook for the tracker."""
    train, val = plan.data()
    epochs = max(1, plan.iterations // EVALUATE_EVERY)
    return Config(
        {
            "default_scope": "mmdet",
            "work_dir": str(plan.work_dir),
            "randomness": {"seed": SEED},
            "model": _model(),
            "train_dataloader": _loader(train, batch=BATCH, training=True),
            "val_dataloader": _loader(val, batch=1, training=False),
            "val_evaluator": {"type": "CocoMetric", "ann_file": str(val.annotations), "metric": ["bbox", "segm"]},
            "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": epochs, "val_interval": 1},
            "val_cfg": {"type": "ValLoop"},
            "optim_wrapper": {
                "type": "OptimWrapper",
                "optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
                "clip_grad": {"max_norm": 10.0},
            },
            "param_scheduler": [{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 10}],
            "default_hooks": {
                "logger": {"type": "LoggerHook", "interval": 10},
                "checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": "coco/bbox_mAP"},
            },
            "custom_hooks": [
                {
                    "type": "unified_tracker_mmdet.UnifiedTrackerHook",
                    "tracker": list(plan.trackers),
                    "init_kwargs": {"project": PROJECT, "name": plan.run_name},
                    "interval": 1,
                    "log_checkpoint": True,
                    "log_checkpoint_metadata": True,
                    "options": plan.options,
                }
            ],
            "env_cfg": {"cudnn_benchmark": False, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
        }
    )


def _loader(split: ShapesDataset, *, batch: int, training: bool) -> dict[str, Any]:
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    return {
        "batch_size": batch,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": training},
        "dataset": {
            "type": "CocoDataset",
            "ann_file": str(split.annotations),
            "data_prefix": {"img": f"{split.images}/"},
            "metainfo": {"classes": CATEGORIES},
            "filter_cfg": {"filter_empty_gt": True} if training else None,
            "test_mode": not training,
            "pipeline": [
                {"type": "LoadImageFromFile"},
                {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
                {"type": "Resize", "scale": (SIZE, SIZE), "keep_ratio": True},
                {"type": "PackDetInputs", "meta_keys": keys},
            ],
        },
    }


def _model() -> dict[str, Any]:
    return {
        "type": "MaskRCNN",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.0, 116.0, 104.0],
            "std": [58.0, 58.0, 58.0],
            "bgr_to_rgb": True,
            "pad_mask": True,
            "pad_size_divisor": 32,
        },
        "backbone": {"type": "DemoBackbone"},
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": CHANNELS,
            "feat_channels": CHANNELS,
            "anchor_generator": {"type": "AnchorGenerator", "scales": [2, 4, 6], "ratios": [1.0], "strides": [STRIDE]},
            "bbox_coder": _coder(1.0, 1.0, 1.0, 1.0),
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True},
            "loss_bbox": {"type": "L1Loss"},
        },
        "roi_head": _roi_head(),
        "train_cfg": _train_cfg(),
        "test_cfg": {
            "rpn": {
                "nms_pre": 200,
                "max_per_img": 50,
                "nms": {"type": "nms", "iou_threshold": 0.7},
                "min_bbox_size": 0,
            },
            "rcnn": {
                "score_thr": 0.05,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": 30,
                "mask_thr_binary": 0.5,
            },
        },
    }


def _roi_head() -> dict[str, Any]:
    classes = len(CATEGORIES)
    return {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": _extractor(7),
        "bbox_head": {
            "type": "Shared2FCBBoxHead",
            "in_channels": CHANNELS,
            "fc_out_channels": 96,
            "roi_feat_size": 7,
            "num_classes": classes,
            "bbox_coder": _coder(0.1, 0.1, 0.2, 0.2),
            "reg_class_agnostic": False,
            "loss_cls": {"type": "CrossEntropyLoss"},
            "loss_bbox": {"type": "L1Loss"},
        },
        "mask_roi_extractor": _extractor(14),
        "mask_head": {
            "type": "FCNMaskHead",
            "num_convs": 1,
            "in_channels": CHANNELS,
            "conv_out_channels": 32,
            "num_classes": classes,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True},
        },
    }


def _coder(*deviations: float) -> dict[str, Any]:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(deviations)}


def _extractor(size: int) -> dict[str, Any]:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0},
        "out_channels": CHANNELS,
        "featmap_strides": [STRIDE],
    }


def _train_cfg() -> dict[str, Any]:
    def assigner(positive: float, negative: float) -> dict[str, Any]:
        thresholds = {"pos_iou_thr": positive, "neg_iou_thr": negative, "min_pos_iou": 0.3}
        return {"type": "MaxIoUAssigner", **thresholds, "match_low_quality": True, "ignore_iof_thr": -1}

    def sampler(number: int, *, with_truth: bool) -> dict[str, Any]:
        share = {"num": number, "pos_fraction": 0.5, "neg_pos_ub": -1}
        return {"type": "RandomSampler", **share, "add_gt_as_proposals": with_truth}

    return {
        "rpn": {
            "assigner": assigner(0.7, 0.3),
            "sampler": sampler(64, with_truth=False),
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": {
            "nms_pre": 400,
            "max_per_img": 100,
            "nms": {"type": "nms", "iou_threshold": 0.7},
            "min_bbox_size": 0,
        },
        "rcnn": {
            "assigner": assigner(0.5, 0.5),
            "sampler": sampler(32, with_truth=True),
            "mask_size": 28,
            "pos_weight": -1,
            "debug": False,
        },
    }


def train(plan: Plan, reporter: Reporter) -> None:
    """Train, evaluate, keep checkpoints: everything that is tracked comes from one hook."""
    runner = Runner.from_cfg(configuration(plan))
    runner.register_hook(ReportProgress(reporter))
    runner.train()
