"""The demo in Detectron2: a Mask R-CNN on a backbone of three convolutions, in an unchanged `DefaultTrainer`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, HookBase, default_setup
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from unified_tracker.demo._plan import BATCH, EVALUATE_EVERY, PROJECT, SEED, SIZE, Plan, Progress, Reporter
from unified_tracker.demo.shapes import CATEGORIES, ShapesDataset

CHANNELS: Final = 64
STRIDE: Final = 8


@BACKBONE_REGISTRY.register()
class DemoBackbone(Backbone):
    """Three strided convolutions: a ResNet-18 takes a second an iteration on two cores, this a quarter of it."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        widths = (input_shape.channels, 24, 48, CHANNELS)
        self.layers = torch.nn.Sequential(
            *(
                torch.nn.Sequential(
                    torch.nn.Conv2d(before, after, 3, stride=2, padding=1),
                    torch.nn.GroupNorm(8, after),
                    torch.nn.ReLU(),
                )
                for before, after in pairwise(widths)
            )
        )
        self._out_features = ["features"]
        self._out_feature_channels = {"features": CHANNELS}
        self._out_feature_strides = {"features": STRIDE}

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Shape (batch, 3, height, width) in, one map of an eighth of the size out."""
        return {"features": self.layers(image)}


class ShapesTrainer(DefaultTrainer):
    """`DefaultTrainer` leaves only the choice of the evaluator open."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """COCO metrics for boxes and masks."""
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


class ReportProgress(HookBase):
    """Tells the terminal where the training is. Nothing of this is needed for tracking."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def after_step(self) -> None:
        """Report the step, and that an evaluation follows where one does."""
        step = self.trainer.iter + 1
        loss = self.trainer.storage.latest().get("total_loss", (float("nan"),))[0]
        self._reporter.step(step, loss)
        if step % EVALUATE_EVERY == 0:
            self._reporter.say(Progress("evaluating", step, loss))

    def after_train(self) -> None:
        """Report that the tracker delivers what is left: its hook is the next one."""
        self._reporter.say(Progress("delivering", self.trainer.iter))


def configuration(plan: Plan) -> CfgNode:
    """The configuration that a user would write: data, model, solver, and five lines for the tracker."""
    from unified_tracker_detectron2 import add_tracker_config

    cfg = get_cfg()
    add_tracker_config(cfg)
    cfg.TRACKER.BACKEND = list(plan.trackers)
    cfg.TRACKER.PROJECT = PROJECT
    cfg.TRACKER.RUN_NAME = plan.run_name
    cfg.TRACKER.INTERVAL = 1
    cfg.TRACKER.MLFLOW.TRACKING_URI = plan.options.get("mlflow", {}).get("tracking_uri", "")
    cfg.TRACKER.WANDB.MODE = plan.options.get("wandb", {}).get("mode", "")

    cfg.OUTPUT_DIR = str(plan.work_dir)
    cfg.SEED = SEED
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("shapes_val",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (SIZE,), SIZE
    cfg.SOLVER.IMS_PER_BATCH = BATCH
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 0.02, 10
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.MAX_ITER = plan.iterations
    cfg.SOLVER.STEPS = (plan.iterations * 2 // 3,)
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = EVALUATE_EVERY
    _model(cfg.MODEL)
    return cfg


def _model(model: CfgNode) -> None:
    model.WEIGHTS = ""
    model.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    model.META_ARCHITECTURE = "GeneralizedRCNN"
    model.BACKBONE.NAME = "DemoBackbone"
    model.MASK_ON = True
    model.PIXEL_STD = [58.0, 58.0, 58.0]
    model.ANCHOR_GENERATOR.SIZES = [[16, 32, 48]]
    model.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    model.RPN.IN_FEATURES = ["features"]
    model.RPN.BATCH_SIZE_PER_IMAGE = 64
    model.RPN.POST_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TEST = 100, 50
    model.ROI_HEADS.NAME = "StandardROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["features"]
    model.ROI_HEADS.NUM_CLASSES = len(CATEGORIES)
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.NUM_FC, model.ROI_BOX_HEAD.FC_DIM = 1, 96
    model.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.CONV_DIM = 1, 32


def train(plan: Plan, reporter: Reporter) -> None:
    """Train, evaluate, keep checkpoints: everything that is tracked comes from one hook."""
    from unified_tracker_detectron2 import UnifiedTrackerHook

    splits = dict(zip(("shapes_train", "shapes_val"), plan.data(), strict=True))
    for name, split in splits.items():
        _register(name, split)
    cfg = configuration(plan)
    cfg.freeze()
    default_setup(cfg, _no_arguments())
    trainer = ShapesTrainer(cfg)
    hook = UnifiedTrackerHook(cfg)
    trainer.register_hooks([ReportProgress(reporter), hook])
    trainer.resume_or_load(resume=False)
    trainer.train()


def _register(name: str, split: ShapesDataset) -> None:
    if name not in DatasetCatalog.list():
        register_coco_instances(name, {}, str(split.annotations), str(split.images))


def _no_arguments() -> Any:
    """What `default_argument_parser` would have given; `default_setup` reads two of its attributes."""
    from detectron2.engine import default_argument_parser

    return default_argument_parser().parse_args([])
