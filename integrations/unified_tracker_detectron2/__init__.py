"""Detectron2 adapter of `unified_tracker`.

cfg = get_cfg(); add_tracker_config(cfg); cfg.merge_from_file("config.yaml")
prepare(cfg)  # fetches what the configuration names by artifact references
trainer = DefaultTrainer(cfg)
trainer.register_hooks([UnifiedTrackerHook(cfg)])
"""

from __future__ import annotations

from unified_tracker_detectron2._config import add_tracker_config
from unified_tracker_detectron2._detections import detections_from_instances
from unified_tracker_detectron2._hook import UnifiedTrackerHook
from unified_tracker_detectron2._prepare import prepare

__all__ = ["UnifiedTrackerHook", "add_tracker_config", "detections_from_instances", "prepare"]
