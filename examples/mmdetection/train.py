"""MMDetection: Mask R-CNN (or Faster R-CNN) from the package's own configurations, cut to a laptop's size, one hook.

    python examples/mmdetection/train.py                                   # generated shapes, MLflow on SQLite
    python examples/mmdetection/train.py --tracker mlflow,wandb --epochs 12
    python examples/mmdetection/train.py --train train.json images --val val.json images --boxes-only
    python examples/mmdetection/train.py --train mlflow-artifact://shapes-train:v0 --val mlflow-artifact://shapes-val:v0
    python examples/mmdetection/train.py --val ... --eval-only --load-from mlflow-artifact://run-1a2b-model:best

`--cfg-options` overrides the configuration: --cfg-options optim_wrapper.optimizer.lr=0.01 custom_hooks.0.interval=5
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.fileio import get_text
from mmengine.hub import get_config
from mmengine.runner import Runner

import unified_tracker_mmdet  # noqa: F401 -- references may stand where MMEngine expects paths
from unified_tracker.demo.shapes import make_shapes

STOCK = {
    True: "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    False: "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
}


def configuration(arguments: argparse.Namespace, classes: tuple[str, ...]) -> Config:
    cfg = get_config(f"mmdet::{STOCK[arguments.boxes_only]}")
    cfg.custom_hooks = [  # all that tracking needs
        {
            "type": "unified_tracker_mmdet.UnifiedTrackerHook",
            "tracker": arguments.tracker,
            "init_kwargs": {"project": "mmdetection-example", "name": Path(STOCK[arguments.boxes_only]).stem},
            "interval": 5,
            "log_checkpoint": True,
            "log_checkpoint_metadata": True,
        }
    ]
    cfg.work_dir = str(arguments.output)
    cfg.train_dataloader = loader(arguments, "train", classes)
    cfg.val_dataloader = cfg.test_dataloader = loader(arguments, "val", classes)
    cfg.val_evaluator.update(ann_file=annotation_file(arguments, "val"), classwise=True)
    cfg.test_evaluator = cfg.val_evaluator
    cfg.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": arguments.epochs, "val_interval": 1}
    cfg.param_scheduler = [{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 10}]
    cfg.optim_wrapper.clip_grad = {"max_norm": 10.0}
    cfg.default_hooks.logger.interval = 5
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=2, save_best="coco/bbox_mAP")
    cut(cfg.model, len(classes))
    cfg.randomness = {"seed": 0}
    cfg.resume, cfg.load_from = arguments.resume, arguments.load_from
    cfg.merge_from_dict(arguments.cfg_options)
    return cfg


def cut(model: ConfigDict, classes: int) -> None:
    """ResNet-18 with narrow heads, from scratch: nothing is downloaded."""
    model.backbone.update(depth=18, base_channels=16, init_cfg=None, frozen_stages=-1, norm_eval=False)
    model.backbone.norm_cfg = {"type": "BN", "requires_grad": True}
    model.neck.update(in_channels=[16, 32, 64, 128], out_channels=64)
    model.rpn_head.update(in_channels=64, feat_channels=64)
    model.rpn_head.anchor_generator.scales = [4]
    heads = model.roi_head
    heads.bbox_roi_extractor.out_channels = 64
    heads.bbox_head.update(in_channels=64, fc_out_channels=128, num_classes=classes)
    if "mask_head" in heads:
        heads.mask_roi_extractor.out_channels = 64
        heads.mask_head.update(num_convs=1, in_channels=64, conv_out_channels=32, num_classes=classes)
    model.train_cfg.rcnn.sampler.num = 32
    model.train_cfg.rpn_proposal.update(nms_pre=400, max_per_img=100)
    model.test_cfg.rpn.update(nms_pre=200, max_per_img=50)
    model.test_cfg.rcnn.max_per_img = 30


def annotation_file(arguments: argparse.Namespace, split: str) -> str:
    given = vars(arguments)[split]
    return str(given[0]) if len(given) == 2 else f"{given[0]}/annotations.json"


def loader(arguments: argparse.Namespace, split: str, classes: tuple[str, ...]) -> dict[str, Any]:
    given = vars(arguments)[split]
    if len(given) == 2:
        place = {"ann_file": str(given[0]), "data_prefix": {"img": f"{given[1]}/"}}
    else:  # a reference stands where the folder of a data set does
        place = {"data_root": given[0], "ann_file": "annotations.json", "data_prefix": {"img": "images/"}}
    training = split == "train"
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    return {
        "batch_size": 4 if training else 1,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": training},
        "dataset": {
            "type": "CocoDataset",
            **place,
            "metainfo": {"classes": classes},
            "filter_cfg": {"filter_empty_gt": training},
            "test_mode": not training,
            "pipeline": [
                {"type": "LoadImageFromFile"},
                {"type": "LoadAnnotations", "with_bbox": True, "with_mask": not arguments.boxes_only},
                {"type": "Resize", "scale": (arguments.size, arguments.size), "keep_ratio": True},
                {"type": "PackDetInputs", "meta_keys": keys},
            ],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracker", help="mlflow, wandb, a plugin, several with commas, or off")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="longer side of the images, pixels")
    parser.add_argument("--train", nargs="+", metavar="DATA", help="COCO json and images, or a reference")
    parser.add_argument("--val", nargs="+", metavar="DATA")
    parser.add_argument("--load-from", help="weights: a file, a URL or a reference")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--boxes-only", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if not arguments.val:
        arguments.train = make_shapes(arguments.output / "shapes", split="train", images=60)
        arguments.val = make_shapes(arguments.output / "shapes", split="val", images=12)
    arguments.train = arguments.train or arguments.val
    categories = json.loads(get_text(annotation_file(arguments, "val")))["categories"]
    runner = Runner.from_cfg(configuration(arguments, tuple(category["name"] for category in categories)))
    if arguments.eval_only:
        runner.test()
    else:
        runner.train()


if __name__ == "__main__":
    main()
