"""Data sets as artifacts, for tests of references: the layout that `dataset create` makes, logged in MLflow."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import unified_tracker as ut
from tests.mlflow_reading import MlflowRun
from unified_tracker._inputs import TAG, of_json
from unified_tracker.records import Input


def log_dataset(
    shapes: Path,
    split: str,
    uri: str,
    name: str,
    work: Path,
    *,
    classes: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
) -> str:
    """Log a split of the shapes as an artifact, through a run of our own. Gives its digest.

    Args:
        shapes: As the fixture makes it.
        split: "train" or "val".
        uri: Of MLflow.
        name: Of the artifact.
        work: A folder to work in.
        classes: Other names for its categories.
        labels: In `detectron2_metadata.json`, the label of each category; default: as they stand.
    """
    folder = work / name
    (folder / "images").mkdir(parents=True)
    coco = json.loads((shapes / f"{split}.json").read_text())
    for category, given in zip(coco["categories"], classes or (), strict=False):
        category["name"] = given
    for image in coco["images"]:
        shutil.copyfile(shapes / split / image["file_name"], folder / "images" / image["file_name"])
    order = list(labels or range(len(coco["categories"])))
    ids = {str(category["id"]): label for category, label in zip(coco["categories"], order, strict=True)}
    names = [coco["categories"][order.index(label)]["name"] for label in range(len(order))]
    content = json.dumps(coco, sort_keys=True).encode()
    (folder / "annotations.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted((folder / "images").iterdir())
    }
    write(folder / "detectron2_metadata.json", {"thing_classes": names, "thing_dataset_id_to_contiguous_id": ids})
    write(folder / "dataset.json", {"name": name, "format": "coco_dataset_json", "digest": digest, "files": files})
    metadata = {"format": {"type": "coco_dataset_json"}, "digest": digest, "images": len(files), "classes": names}
    options = {"mlflow": {"tracking_uri": uri}}
    with ut.start_run("mlflow", project="datasets", id=f"dataset-{name}", dir=work / "runs", options=options) as run:
        run.log_artifact(folder, name=name, type="dataset", metadata=metadata)
    return digest


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))


def datasets_of(run: MlflowRun) -> set[tuple[str, str]]:
    """Context and name of the data sets that MLflow shows as inputs of a run."""
    inputs = run.client.get_run(run.id).inputs.dataset_inputs
    return {(tag.value, each.dataset.name) for each in inputs for tag in each.tags if tag.key == "mlflow.data.context"}


def records_of(run: MlflowRun) -> dict[str, Input]:
    """Role and name, "train shapes-train", to the record of an input, from the tags of the run."""
    tags = [value for key, value in run.tags.items() if key.startswith(TAG)]
    records = [record for value in tags for record in of_json(value)]
    return {f"{record.role} {record.name}": record for record in records}
