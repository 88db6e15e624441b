"""Detectron2: Mask R-CNN (or Faster R-CNN) from the model zoo, cut to a laptop's size, tracked by one hook.

    python examples/detectron2/train.py                                   # generated shapes, MLflow on SQLite
    python examples/detectron2/train.py --tracker mlflow,wandb --iterations 200
    python examples/detectron2/train.py --train train.json images --val val.json images --boxes-only
    python examples/detectron2/train.py --train mlflow-artifact://shapes-train --val mlflow-artifact://shapes-val
    python examples/detectron2/train.py --val ... --eval-only MODEL.WEIGHTS mlflow-artifact://run-1a2b-model:best

`KEY VALUE` pairs at the end override the configuration: SOLVER.BASE_LR 0.01 TRACKER.PROJECT cells
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_setup, hooks
from detectron2.evaluation import COCOEvaluator

from unified_tracker.demo.shapes import make_shapes
from unified_tracker_detectron2 import UnifiedTrackerHook, add_tracker_config, prepare

STOCK = {
    True: "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    False: "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
}


class Trainer(DefaultTrainer):
    """`DefaultTrainer` leaves the evaluator open; nothing in here is about tracking."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        return COCOEvaluator(dataset_name, output_dir=f"{cfg.OUTPUT_DIR}/inference")


def configuration(arguments: argparse.Namespace) -> CfgNode:
    cfg = get_cfg()
    add_tracker_config(cfg)  # 1: the node cfg.TRACKER
    cfg.merge_from_file(model_zoo.get_config_file(STOCK[arguments.boxes_only]))
    cfg.TRACKER.BACKEND = arguments.tracker
    cfg.TRACKER.PROJECT = "detectron2-example"
    cfg.TRACKER.RUN_NAME = Path(STOCK[arguments.boxes_only]).stem

    cfg.OUTPUT_DIR = str(arguments.output)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((dataset(arguments, split),) for split in ("train", "val"))
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.WEIGHTS = ""  # from scratch: nothing is downloaded
    cfg.MODEL.DEVICE = arguments.device
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "BN"
    cfg.MODEL.PIXEL_STD = [57.4, 57.1, 58.4]
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [96], [128]]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 128
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 32
    cfg.SEED = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (arguments.size,), arguments.size
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 4, 0.02, 10
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = arguments.iterations, ()
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = max(1, arguments.iterations // 3)
    cfg.merge_from_list(arguments.opts)
    prepare(cfg)  # 2: fetches what DATASETS and MODEL.WEIGHTS name by reference; without references it does nothing
    DatasetCatalog.get(cfg.DATASETS.TEST[0])  # names its classes
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes)
    return cfg


def dataset(arguments: argparse.Namespace, split: str) -> str:
    """The name under which Detectron2 finds a data set: a reference is a name itself."""
    given = vars(arguments)[split]
    if len(given) == 2:
        register_coco_instances(f"example_{split}", {}, *map(str, given))
    return given[0] if len(given) == 1 else f"example_{split}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracker", help="mlflow, wandb, a plugin, several with commas, or off")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--size", type=int, default=128, help="shorter side of the images, pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--train", nargs="+", metavar="DATA", help="COCO json and images, or a reference")
    parser.add_argument("--val", nargs="+", metavar="DATA")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--boxes-only", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE")
    arguments = parser.parse_args()
    if not arguments.val:
        arguments.train = make_shapes(arguments.output / "shapes", split="train", images=60)
        arguments.val = make_shapes(arguments.output / "shapes", split="val", images=12)
    arguments.train = arguments.train or arguments.val

    cfg = configuration(arguments)
    default_setup(cfg, arguments)
    if arguments.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        with UnifiedTrackerHook(cfg).evaluation(model) as evaluation:
            evaluation.results = Trainer.test(cfg, model)
        return
    trainer = Trainer(cfg)
    period = cfg.TEST.EVAL_PERIOD
    trainer.register_hooks(
        [
            hooks.BestCheckpointer(period, trainer.checkpointer, "bbox/AP"),
            UnifiedTrackerHook(cfg),  # 3: the hook, last
        ]
    )
    trainer.resume_or_load(resume=arguments.resume)
    trainer.train()


if __name__ == "__main__":
    main()
