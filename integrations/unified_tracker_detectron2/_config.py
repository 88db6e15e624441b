"""The configuration node `TRACKER`, and what the hook reads from a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from detectron2.config import CfgNode

from unified_tracker._mask import mask, unsalted


def add_tracker_config(cfg: CfgNode) -> None:
    """Add the node `TRACKER` with its defaults, so that YAML files and `KEY VALUE` overrides may set it.

    `BACKEND`: a name, a list of names or "off"; None leaves the choice to `$UNIFIED_TRACKER` and `tracker.yaml`.
    `INTERVAL`: iterations between two rows of training metrics; 20 is the period of Detectron2's own writers.
    `BEST_METRIC`: decides the alias "best", for example "bbox/AP"; None takes box AP where there are boxes.
    `KEEP_LAST`: how many checkpoints the backend keeps beside those that something needs; 0 for all. `KEEP_EVERY`: also
    those of every so many iterations.
    `KEEP_RUN_OPEN`: leave the run open after training, for a test-set evaluation by hand.
    """
    node = CfgNode()
    node.BACKEND = None
    node.PROJECT = None
    node.RUN_NAME = None
    node.RUN_DESCRIPTION = None
    node.TAGS = CfgNode(new_allowed=True)
    node.INTERVAL = 20
    node.LOG_CHECKPOINT = True
    node.LOG_CHECKPOINT_METADATA = True
    node.BEST_METRIC = None
    node.KEEP_LAST = 0
    node.KEEP_EVERY = 0
    node.NUM_EVAL_IMAGES = 100
    node.SCORE_THRESH = 0.3
    node.KEEP_RUN_OPEN = False
    node.MLFLOW = CfgNode({"TRACKING_URI": None, "REGISTERED_MODEL_NAME": None})
    node.WANDB = CfgNode({"ENTITY": None, "MODE": None})
    cfg.TRACKER = node


def hook_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of the hook that a configuration sets: `cfg.TRACKER`, then the blog's `cfg.MLFLOW`."""
    arguments: dict[str, Any] = {"config": as_dict(cfg), "output_dir": cfg.get("OUTPUT_DIR")}
    blog = cfg.get("MLFLOW")
    if blog is not None:
        arguments |= {
            "project": blog.get("EXPERIMENT_NAME"),
            "name": blog.get("RUN_NAME"),
            "description": blog.get("RUN_DESCRIPTION"),
            "options": {"mlflow": {"tracking_uri": blog.get("TRACKING_URI")}},
        }
    node = cfg.get("TRACKER")
    if node is not None:
        own = {
            "tracker": node.BACKEND,
            "project": node.PROJECT,
            "name": node.RUN_NAME,
            "description": node.RUN_DESCRIPTION,
            "tags": dict(node.TAGS),
            "interval": node.INTERVAL,
            "log_checkpoint": node.LOG_CHECKPOINT,
            "log_checkpoint_metadata": node.LOG_CHECKPOINT_METADATA,
            "best_metric": node.BEST_METRIC,
            "keep_last": node.KEEP_LAST,
            "keep_every": node.KEEP_EVERY,
            "num_eval_images": node.NUM_EVAL_IMAGES,
            "score_thresh": node.SCORE_THRESH,
            "keep_run_open": node.KEEP_RUN_OPEN,
        }
        arguments |= {key: value for key, value in own.items() if value is not None}
        backends = {
            "mlflow": {
                "tracking_uri": node.MLFLOW.TRACKING_URI,
                "registered_model_name": node.MLFLOW.get("REGISTERED_MODEL_NAME"),
            },
            "wandb": {"entity": node.WANDB.ENTITY, "mode": node.WANDB.MODE},
        }
        arguments["options"] = _without_none(arguments.get("options", {}), backends)
    return arguments


def training_datasets(*configs: Any) -> list[str]:
    """Names of the data sets that are trained on, as `evaluated_datasets`."""
    return _names(configs, ("DATASETS", "TRAIN"), ("dataloader", "train", "dataset", "names"))


def evaluated_datasets(*configs: Any) -> list[str]:
    """Names of the data sets that an evaluation runs on: of the first configuration that says it.

    Args:
        configs: `CfgNode` ("DATASETS.TEST"), LazyConfig ("dataloader.test.dataset.names"), None.
    """
    return _names(configs, ("DATASETS", "TEST"), ("dataloader", "test", "dataset", "names"))


def initial_weights(*configs: Any) -> str:
    """What a configuration names as weights, "MODEL.WEIGHTS" or "train.init_checkpoint"; "" if nothing."""
    paths = ("MODEL", "WEIGHTS"), ("train", "init_checkpoint")
    found = (_value(config, path) for config in configs for path in paths)
    return next((str(value) for value in found if value), "")


def _names(configs: Any, *paths: tuple[str, ...]) -> list[str]:
    for config in configs:
        for path in paths:
            if found := _value(config, path):
                return [found] if isinstance(found, str) else [str(name) for name in found]
    return []


def _value(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration of either kind (CfgNode, OmegaConf) as nested plain values; anything else becomes text."""
    if isinstance(config, CfgNode):
        plain = yaml.safe_load(config.dump())
        return plain if isinstance(plain, dict) else {}
    return dict(config) if isinstance(config, Mapping) else {"config": str(config)}


def as_yaml(config: Any) -> str:
    """The same as the text of a YAML file."""
    if isinstance(config, CfgNode):
        return str(config.dump())
    try:
        from omegaconf import OmegaConf

        if OmegaConf.is_config(config):
            return str(OmegaConf.to_yaml(config))
    except ImportError:
        pass
    return str(yaml.dump(as_dict(config), default_flow_style=False))


def masked_yaml(config: CfgNode) -> str:
    """A YAML file that Detectron2 reads, without secrets, the same in every process.

    Masked value by value: what stands in the place of a secret is a string again, also where it begins with "*".
    """
    return unsalted(str(yaml.safe_dump(mask(as_dict(config)), default_flow_style=False)))


def _without_none(*sources: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for source in sources:
        for backend, options in source.items():
            merged.setdefault(backend, {}).update({key: value for key, value in options.items() if value is not None})
    return merged
