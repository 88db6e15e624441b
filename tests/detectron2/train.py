"""A tiny Detectron2 training as a program, for tests: what varies comes as one JSON argument.

Prints, as its last line, what the test wants to know about the training process.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, default_setup, defaults, hooks, launch
from detectron2.engine.defaults import default_argument_parser
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from unified_tracker.demo._detectron2 import ShapesTrainer, configuration
from unified_tracker.demo._plan import Plan
from unified_tracker_detectron2 import UnifiedTrackerHook, prepare


class Trouble(HookBase):
    """Ends the training at an iteration, in one of the ways in which trainings end."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at = kind, at

    def after_step(self) -> None:
        if self.trainer.iter + 1 != self.at:
            return
        if self.kind == "raise":
            raise RuntimeError("the loss went to the moon")
        if self.kind == "interrupt":
            raise KeyboardInterrupt
        os.kill(os.getpid(), {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}[self.kind])


def plain_trainer(cfg: Any) -> SimpleTrainer:
    """`plain_train_net`: a trainer without configuration, checkpointer or evaluation, built from parts."""
    model = DefaultTrainer.build_model(cfg)
    return SimpleTrainer(model, DefaultTrainer.build_train_loader(cfg), DefaultTrainer.build_optimizer(cfg, model))


def random_states(model: torch.nn.Module) -> dict[str, str]:
    """What a training has made of the weights and of the global random generators."""
    states = {
        "random": repr(random.getstate()).encode(),
        "numpy": repr(np.random.get_state()[1].tolist()).encode(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "weights": b"".join(value.numpy().tobytes() for value in model.state_dict().values()),
    }
    return {name: hashlib.sha256(state).hexdigest() for name, state in states.items()}


def lazy_evaluation(cfg: Any, model: torch.nn.Module) -> Any:
    """`do_test` of `lazyconfig_train_net`: evaluates the model that the trainer may have wrapped."""
    results = inference_on_dataset(
        model,
        ShapesTrainer.build_test_loader(cfg, "shapes_val"),
        COCOEvaluator("shapes_val", output_dir=cfg.OUTPUT_DIR),
    )
    model.train()
    return results


def evaluate_only(cfg: Any, wish: dict[str, Any]) -> UnifiedTrackerHook:
    """`tools/train_net.py --eval-only`."""
    model = ShapesTrainer.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS)
    hook = UnifiedTrackerHook(cfg)
    with hook.evaluation(model) as evaluation:
        evaluation.results = ShapesTrainer.test(cfg, model)
        if wish["eval_only"] == "fail":
            raise RuntimeError("the test went to the moon")
    return hook


def main(wish: dict[str, Any]) -> None:
    """Train."""
    # Detectron2 passes `device_ids` to DistributedDataParallel, which only GPUs take.
    defaults.create_ddp_model = lambda model, **_: (
        DistributedDataParallel(model) if comm.get_world_size() > 1 else model
    )
    folder = Path(wish["data"])
    for split in ("train", "val"):
        register_coco_instances(f"shapes_{split}", {}, str(folder / f"{split}.json"), str(folder / split))
    backends = {"mlflow": {"tracking_uri": wish.get("uri", "")}, "wandb": {"mode": "offline"}}
    plan = Plan("detectron2", tuple(wish.get("trackers", ["mlflow"])), backends, wish["output"], wish["iterations"])
    cfg = configuration(plan)
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(wish.get("opts", []))
    if "yaml" in wish:
        cfg.TRACKER.BACKEND = None  # yacs refuses a string or boolean where the default is a list
        (Path(wish["output"]) / "config.yaml").write_text(wish["yaml"])
        cfg.merge_from_file(str(Path(wish["output"]) / "config.yaml"))
    if "blog" in wish:
        from detectron2.config import CfgNode

        del cfg["TRACKER"]
        cfg.MLFLOW = CfgNode(wish["blog"])
    if wish.get("prepare"):
        cfg.freeze()
        prepare(cfg)
    default_setup(cfg, default_argument_parser().parse_args([]))
    if wish.get("eval_only"):
        hook = evaluate_only(cfg, wish)
        print(json.dumps({"run_id": hook.run.id}), flush=True)
        return
    hook_arguments = wish.get("hook")
    hook = UnifiedTrackerHook(**hook_arguments) if hook_arguments is not None else UnifiedTrackerHook(cfg)
    if wish.get("plain"):
        trainer = plain_trainer(cfg)
        mine = [hooks.IterationTimer(), hook]
        if wish.get("evaluate"):
            mine.insert(1, hooks.EvalHook(2, lambda: lazy_evaluation(cfg, trainer.model)))
        trainer.register_hooks(mine)
        trainer.train(0, cfg.SOLVER.MAX_ITER)
    else:
        trainer = ShapesTrainer(cfg)
        early = wish.get("register", "early") == "early"
        mine = [hooks.BestCheckpointer(cfg.TEST.EVAL_PERIOD, trainer.checkpointer, "segm/AP"), hook]
        if "trouble" in wish:
            mine.insert(0, Trouble(*wish["trouble"]))
        if early:
            trainer.register_hooks(mine)
        trainer.resume_or_load(resume=wish.get("resume", False))
        if not early:
            trainer.register_hooks(mine)
        trainer.train()
    if wish.get("after") == "test":
        with hook.evaluation(trainer.model) as evaluation:
            evaluation.results = ShapesTrainer.test(cfg, trainer.model)
    elif wish.get("after"):
        hook.run.log_metrics({"test/bbox/mAP": 0.25}, step=cfg.SOLVER.MAX_ITER)
        hook.run.finish()
    print(
        json.dumps(
            {
                "run_id": hook.run.id,
                "active": hook.run.dir is not None,
                "sdks": sorted({"mlflow", "wandb"} & set(sys.modules)),
                "threads": [thread.name for thread in threading.enumerate()],
                "random": random_states(trainer.model),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    wish = json.loads(sys.argv[1])
    if wish.get("processes", 1) > 1:
        launch(main, wish["processes"], dist_url="auto", args=(wish,))
    else:
        main(wish)
