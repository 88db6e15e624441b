"""The sample as W&B's data set `<dataset>-val`: the pictures, what is true as a table and as COCO annotations."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from unified_tracker._digest import files_digest
from unified_tracker.backends._wandb_images import TRUTH, LayeredImage, Names
from unified_tracker.backends._wandb_objects import TaskObjects
from unified_tracker.backends._wandb_pictures import Picture, shown_picture
from unified_tracker.backends._wandb_store import Store
from unified_tracker.backends._wandb_tables import (
    CLASSES_SUFFIX,
    SUFFIX,
    ImageColumn,
    Kind,
    Table,
    classes_file,
    identifiers,
    text,
)
from unified_tracker.backends._wandb_versions import Draft, Version

if TYPE_CHECKING:
    from unified_tracker.predictions._report import PredictionReport

TABLE: Final = "val_data"  # as in MMDetection 2.x, like the first two columns
COLUMN: Final = "image"
COLUMNS: Final[dict[str, Kind]] = {
    "image_name": "string",
    COLUMN: "image-file",
    "image_id": "number",
    "width": "number",
    "height": "number",
    "objects": "number",
    "note": "string",
}
Cell = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """The sample as W&B has it: what tables of predictions are made of.

    Attributes:
        digest: Of the content, as the run directory names it.
        cells: For each image the cell of the table, in the order of the sample.
        column: The type of the column of images.
        version: Where the files are.
        files: Where they are on this machine; offline only.
    """

    digest: str
    cells: list[Cell]
    column: dict[str, Any]
    version: Version
    files: Mapping[str, Path]

    def named(self) -> list[str]:
        """All files that the cells name: pictures, masks, classes."""
        found: dict[str, None] = {}
        for cell in self.cells:
            masks = [mask["path"] for mask in cell.get("masks", {}).values()]
            found |= dict.fromkeys([cell["path"], cell["classes"]["path"], *masks])
        return list(found)


def draft_sample(report: PredictionReport, store: Store) -> Draft:
    """The version of `<dataset>-val` for a report's sample; the same for the same sample, whichever run it is in."""
    sample, names = report.sample, Names.of(report.sample)
    files = dict(report.sample_files)
    originals = {path: name for name, path in files.items()}
    kind, ids = identifiers([image.id for image in sample.images])
    column = ImageColumn()
    table = Table({**COLUMNS, "image_id": kind}, {COLUMN: column})
    classes = store.put(classes_file(names.every()), CLASSES_SUFFIX)
    classes_path = f"media/classes/{classes.name}_cls{CLASSES_SUFFIX}"
    files[classes_path] = classes.file
    for image_id, image, packed in zip(ids, report.images, sample.images, strict=True):
        original = report.image_file(packed.id)
        picture = shown_picture(image, original, originals[original] if original else "", store)
        layers = LayeredImage(image.height, image.width, names, column, store)
        objects = 0
        for task, shown in (image.truth or {}).items():
            truth = TaskObjects.of(shown, (packed.truth or {})[task], image.height, image.width)
            objects += len(truth.labels)
            if task == "instances":
                layers.add_truth(truth, TRUTH)
            layers.add_masks(TRUTH, task, truth)
        files |= {path: mask.file for path, mask in layers.mask_files.items()} | {picture.path: picture.file.file}
        table.add(
            {
                "image_name": image.name,
                COLUMN: image_cell(picture, layers, image.width, image.height, image_entry(classes_path, classes.file)),
                "image_id": image_id,
                "width": image.width,
                "height": image.height,
                "objects": None if image.truth is None else objects,
                "note": note(picture.why, layers.left_out),
            }
        )
    files[TABLE + SUFFIX] = store.put(table.encode(), SUFFIX).file
    content, _ = files_digest(report.sample_files)  # the run directory's own digest tells files by place and time
    metadata = {"sample": content, "images": len(ids), "classes": len(sample.classes)}
    return Draft(f"{sample.dataset}-val", "dataset", files, metadata=metadata)


def sample_of(digest: str, version: Version, table: bytes, files: Mapping[str, Path]) -> Sample:
    """A sample from the table that stands in its artifact."""
    content = msgspec.json.decode(table)
    column = list(content["columns"]).index(COLUMN)
    kinds = content["column_types"]["params"]["type_map"][COLUMN]["params"]["allowed_types"]
    (kind,) = (each for each in kinds if each["wb_type"] == "image-file")
    return Sample(digest, [row[column] for row in content["data"]], kind, version, files)


def image_cell(picture: Picture, layers: LayeredImage, width: int, height: int, classes: Mapping[str, str]) -> Cell:
    """A cell of a table: a picture under its layers."""
    cell: Cell = {
        "_type": "image-file",
        "path": picture.path,
        "sha256": picture.file.sha256,
        "format": picture.path.rpartition(".")[2],
        "width": width,
        "height": height,
        "classes": dict(classes),
    }
    if picture.why:
        cell["caption"] = text(picture.why)
    return cell | layered(layers)


def layered(layers: LayeredImage) -> Cell:
    """The part of a cell that names its layers."""
    return {name: value for name, value in (("boxes", layers.boxes), ("masks", layers.masks)) if value}


def note(why: str, left_out: int) -> str | None:
    """What a user should know of a row."""
    said = [why] if why else []
    if left_out:
        said.append(f"{left_out} masks that overlap too many others are not shown")
    return "; ".join(said) or None


def image_entry(path: str, file: Path) -> dict[str, str]:
    """How an image in a table names the file with its classes."""
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).digest()  # as artifacts name their files
    return {"type": "classes-file", "path": path, "digest": base64.b64encode(md5).decode()}
