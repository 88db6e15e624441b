"""Predictions as data: what a model said about a fixed sample of validation images, beside what is true.

Example:
    from unified_tracker.predictions import Detections, SampleEvaluation, SampleImage, ValidationSample

    truth = Detections(labels=[0], boxes=[[10, 20, 110, 90]])
    sample = ValidationSample("balloon", ["balloon"], [SampleImage(17, 480, 640, path="val/17.jpg", truth=truth)])
    found = Detections(labels=[0, 0], boxes=[[12, 18, 108, 95], [300, 40, 330, 80]], scores=[0.93, 0.41])
    run.log_predictions(SampleEvaluation(sample, {17: found}), step=1000)
"""

from __future__ import annotations

from unified_tracker.predictions._detections import Detections, Task, TaskDetections
from unified_tracker.predictions._sample import SampleEvaluation, SampleImage, ValidationSample, choose_images

__all__ = [
    "Detections",
    "SampleEvaluation",
    "SampleImage",
    "Task",
    "TaskDetections",
    "ValidationSample",
    "choose_images",
]
