"""A tiny MMDetection training as a program, for tests: a stock configuration of the package, cut down to seconds.

What varies comes as one JSON argument. Prints, as its last line, what the test wants to know about the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.registry import HOOKS, METRICS
from mmengine.runner import Runner

from unified_tracker.demo.shapes import CATEGORIES

torch.set_num_threads(1)
SIZE = 64
CONFIG = "rtmdet/rtmdet_tiny_8xb32-300e_coco.py"


@HOOKS.register_module()
class Trouble(Hook):
    """Ends the training after an iteration, in one of the ways in which trainings end."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at = kind, at

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.iter + 1 != self.at:
            return
        if self.kind == "raise":
            raise RuntimeError("the loss went to the moon")
        sent = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM, "kill": signal.SIGKILL}[self.kind]
        os.kill(os.getpid(), sent)
        time.sleep(5)


@HOOKS.register_module()
class Costs(Hook):
    """Takes the time of the tracker's callback, iteration by iteration."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def before_train(self, runner: Runner) -> None:
        hook = next(hook for hook in runner.hooks if hasattr(hook, "bbox_score_thr"))
        inner = hook.after_train_iter

        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            inner(*args, **kwargs)
            self.seconds[runner.iter + 1] = time.perf_counter() - start

        hook.after_train_iter = timed


@HOOKS.register_module()
class Keeper(Hook):
    """Copies each checkpoint when it is complete, so that a test knows the bytes of those that are rotated away."""

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        kept = Path(runner.work_dir).parent / "kept"
        kept.mkdir(exist_ok=True)
        for path in Path(checkpoint_folder(runner)).glob("*.pth"):
            if not (kept / path.name).exists():
                shutil.copyfile(path, kept / path.name)

    def after_run(self, runner: Runner) -> None:
        self.before_train_iter(runner)


def checkpoint_folder(runner: Runner) -> str:
    hook = next((hook for hook in runner.hooks if hasattr(hook, "max_keep_ckpts")), None)
    return str(getattr(hook, "out_dir", None) or runner.work_dir)


@METRICS.register_module()
class Odd(BaseMetric):
    """Results that are no scalars, and a score that goes up and down."""

    default_prefix = "odd"
    calls = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(len(data_samples))

    def compute_metrics(self, results: list[int]) -> dict[str, Any]:
        Odd.calls += 1
        score = [0.2, 0.5, 0.4, 0.6, 0.1][(Odd.calls - 1) % 5]
        return {"score": score, "curve": [0.1, 0.2], "text": "fine", "images": torch.tensor(sum(results))}


def shrink(cfg: ConfigDict) -> None:
    """The smallest network of the same architecture; no pretrained weights."""
    model = cfg.model
    model.backbone.init_cfg = None
    if "score_thr" in model.test_cfg:
        model.test_cfg.score_thr = 0.001  # of an untrained network nothing else is left to evaluate
    if model.type == "RTMDet":
        model.backbone.update(widen_factor=0.125, deepen_factor=0.167)
        model.neck.update(in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1)
        model.bbox_head.update(in_channels=32, feat_channels=32, num_classes=len(CATEGORIES))
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != "PipelineSwitchHook"]
        return
    model.backbone.update(depth=18, base_channels=8)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    if model.type == "RetinaNet":
        model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=len(CATEGORIES))
        return
    model.rpn_head.update(in_channels=32, feat_channels=32)
    roi = model.roi_head
    roi.bbox_roi_extractor.out_channels = 32
    roi.bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=len(CATEGORIES))
    if "mask_head" in roi:
        roi.mask_roi_extractor.out_channels = 32
        roi.mask_head.update(num_convs=1, in_channels=32, conv_out_channels=32, num_classes=len(CATEGORIES))


def loader(data: Path, split: str, batch: int, *, masks: bool, infinite: bool = False) -> dict[str, Any]:
    training = split == "train"
    pipeline: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks},
        {"type": "Resize", "scale": (SIZE, SIZE), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
    return {
        "_delete_": True,
        "batch_size": batch,
        "num_workers": 0,
        "sampler": {"type": "InfiniteSampler" if infinite and training else "DefaultSampler", "shuffle": training},
        "dataset": {
            "type": "CocoDataset",
            "ann_file": str(data / f"{split}.json"),
            "data_prefix": {"img": f"{data / split}/"},
            "metainfo": {"classes": CATEGORIES},
            "test_mode": not training,
            "pipeline": pipeline,
        },
    }


def configuration(wish: dict[str, Any]) -> Config:
    """The stock configuration with the tests' data, sizes and hook, then what the test wishes."""
    data = Path(wish["data"])
    cfg = get_config(f"mmdet::{wish.get('config', CONFIG)}")
    shrink(cfg)
    masks = cfg.model.type == "MaskRCNN"
    infinite = cfg.train_cfg.get("type") == "IterBasedTrainLoop"
    evaluator = {
        "type": "CocoMetric",
        "ann_file": str(data / "val.json"),
        "metric": ["bbox", "segm"] if masks else "bbox",
        "classwise": True,
    }
    options = {"mlflow": {"tracking_uri": wish.get("uri", "")}, "wandb": {"mode": "offline"}}
    hook = {"type": "unified_tracker_mmdet.UnifiedTrackerHook", "tracker": "mlflow", "interval": 2, "options": options}
    hook |= {"log_checkpoint": True, "log_checkpoint_metadata": True, **wish.get("hook", {})}
    cfg.merge_from_dict(
        {
            "work_dir": str(Path(wish["output"]) / "work"),
            "randomness": {"seed": 7},
            "train_dataloader": loader(data, "train", 4, masks=masks, infinite=infinite),
            "val_dataloader": loader(data, "val", 2, masks=masks),
            "test_dataloader": loader(data, "val", 2, masks=masks),
            "val_evaluator": [evaluator],
            "test_evaluator": [evaluator],
            "default_hooks.logger.interval": 2,
            "env_cfg.mp_cfg.opencv_num_threads": 0,
            "vis_backends": [{"type": "LocalVisBackend"}],
        }
    )
    if not infinite:
        cfg.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": wish.get("epochs", 3), "val_interval": 1}
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), *wish.get("more_hooks", []), hook]
    if wish.get("odd"):
        cfg.val_evaluator = [evaluator, {"type": "Odd"}]
    for split in wish.get("results", ()):  # CocoMetric writes what it has been given
        cfg[f"{split}_evaluator"][0]["outfile_prefix"] = f"{wish['output']}/{split}"
    if wish.get("no_validation"):
        cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    for key in wish.get("drop_hooks", []):
        cfg.default_hooks[key] = None  # a hook that is only left out is registered with its defaults
    cfg.merge_from_dict(wish.get("set", {}))
    return cfg


def random_states(model: torch.nn.Module) -> dict[str, str]:
    """What the steps have made of the weights and of the global random generators."""
    states = {
        "random": repr(random.getstate()).encode(),
        "numpy": repr(np.random.get_state()[1].tolist()).encode(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "weights": b"".join(value.numpy().tobytes() for value in model.state_dict().values()),
    }
    return {name: hashlib.sha256(state).hexdigest() for name, state in states.items()}


def main(wish: dict[str, Any]) -> None:
    """Train, test, validate: as the test wishes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to Ctrl-C
    cfg = configuration(wish)
    if "LOCAL_RANK" in os.environ:
        cfg.launcher = "pytorch"
        cfg.env_cfg.dist_cfg = {"backend": "gloo"}
        cfg.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "find_unused_parameters": True,
        }
        torch.cuda.set_device = lambda _: None  # MMEngine calls it with any backend
    path = Path(wish["output"]) / f"config{os.environ.get('RANK', '')}" / Path(wish.get("config", CONFIG)).name
    path.parent.mkdir(exist_ok=True)
    cfg.dump(path)
    runner = Runner.from_cfg(Config.fromfile(path))
    for step in wish.get("steps", ["train"]):
        getattr(runner, step)()
    hook = next(hook for hook in runner.hooks if hasattr(hook, "bbox_score_thr"))
    costs = next((hook.seconds for hook in runner.hooks if isinstance(hook, Costs)), {})
    said = {
        "run_id": hook.run.id,
        "recording": hook.run.dir is not None,
        "sdks": sorted({"mlflow", "wandb"} & set(sys.modules)),
        "threads": [thread.name for thread in threading.enumerate()],
        "state": runner.message_hub.get_info("unified_tracker"),
        "log_dir": runner.log_dir,
        "costs": costs,
        "random": random_states(runner.model),
    }
    if runner.rank == 0:
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
