"""Data sets: a COCO data set as a versioned artifact, checked, counted, and compared with the version before.

Example:
    from unified_tracker.datasets import Selection, create_dataset

    made = create_dataset(
        "furniture-small-train", "instances_val2017.json", "val2017", selection=Selection(select_fraction=0.2)
    )
    print(made.outcome, made.versions)  # created {'mlflow': 'v0'}
"""

from __future__ import annotations

from unified_tracker.datasets._card import DatasetCard
from unified_tracker.datasets._changes import Changes
from unified_tracker.datasets._create import Created, create_dataset
from unified_tracker.datasets._flaws import BrokenDatasetError, Flaw
from unified_tracker.datasets._leakage import shared_images
from unified_tracker.datasets._selection import Selection

__all__ = [
    "BrokenDatasetError",
    "Changes",
    "Created",
    "DatasetCard",
    "Flaw",
    "Selection",
    "create_dataset",
    "shared_images",
]
