"""MMDetection 3.x adapter of `unified_tracker`; works with every MMEngine `Runner`.

::

    custom_imports = dict(imports=["unified_tracker_mmdet"])
    custom_hooks = [dict(type="UnifiedTrackerHook", tracker="mlflow", init_kwargs=dict(project="mmdetection"))]
"""

from __future__ import annotations

from unified_tracker_mmdet._detections import detections_from_sample
from unified_tracker_mmdet._hook import MMDetWandbHook, UnifiedTrackerHook

__all__ = ["MMDetWandbHook", "UnifiedTrackerHook", "detections_from_sample"]
