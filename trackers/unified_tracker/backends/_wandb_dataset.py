"""A data set in W&B: its artifact with the table `data_table`, pictures under their true boxes, as in W&B's demo."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from unified_tracker.backends import _wandb_values as values
from unified_tracker.backends._wandb_pictures import shown_picture
from unified_tracker.backends._wandb_sample import image_entry
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
from unified_tracker.backends._wandb_versions import Draft
from unified_tracker.predictions._document import ShownImage
from unified_tracker.records import Artifact

TABLE: Final = "data_table"
COLUMN: Final = "image"
LAYER: Final = "ground_truth"
ANNOTATIONS: Final = "annotations.json"
MOST_ROWS: Final = 20_000  # W&B's browser takes 200,000; a row here has dozens of boxes
Entry = dict[str, Any]

_log = logging.getLogger("unified_tracker.wandb")


def draft_dataset(record: Artifact, name: str, files: Mapping[str, Path], store: Store) -> Draft:
    """The version of a data set, with its table; without one where `annotations.json` is not what it should be.

    The columns are those of the first image in `annotations.json`, then `image`. Class ids of boxes are the category
    ids of the data set. Of more than 20,000 images as many are in the table, evenly chosen. Images that
    are there by reference only have no picture.
    """
    draft = Draft.of(record, name, files)
    try:
        content = msgspec.json.decode(files[ANNOTATIONS].read_bytes())
        more = _table(content, files, store)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError) as error:  # somebody else's file
        _log.warning("data set %s gets no table: %s: %s", name, type(error).__name__, error)
        return draft
    return Draft(name, record.type, {**files, **more}, {}, values.metadata(record), record.aliases)


def _table(content: Mapping[str, list[Entry]], files: Mapping[str, Path], store: Store) -> dict[str, Path]:
    """The files that a table adds to its artifact."""
    images = content["images"]
    if not images:
        return {}
    if len(images) > MOST_ROWS:
        images = [images[place * len(images) // MOST_ROWS] for place in range(MOST_ROWS)]
    classes = {int(category["id"]): text(category["name"]) for category in content["categories"]}
    boxes: defaultdict[Any, list[Entry]] = defaultdict(list)
    for annotation in content["annotations"]:
        boxes[annotation["image_id"]].append(_box(annotation, classes))
    made = store.put(classes_file(classes), CLASSES_SUFFIX)
    classes_path = f"media/classes/{made.name}_cls{CLASSES_SUFFIX}"
    added = {classes_path: made.file}
    keys = {key: _kind([image.get(key) for image in images]) for key in images[0] if key != COLUMN}
    used = sorted({box["class_id"] for each in boxes.values() for box in each})
    column = ImageColumn(boxes={LAYER: {number: classes[number] for number in used}})
    table = Table({**keys, COLUMN: "image-file"}, {COLUMN: column})
    entry = image_entry(classes_path, made.file)
    for image in images:
        row = {key: _plain(image.get(key), kind) for key, kind in keys.items()}
        path = f"images/{image['file_name']}"
        if path in files:
            size = int(image["width"]), int(image["height"])
            picture = shown_picture(ShownImage(image["id"], image["file_name"], *size), files[path], path, store)
            if picture.path != path:
                added[picture.path] = picture.file.file
            row[COLUMN] = {
                "_type": "image-file",
                "path": picture.path,
                "sha256": picture.file.sha256,
                "format": picture.path.rpartition(".")[2],
                "width": size[0],
                "height": size[1],
                "classes": entry,
                "boxes": {LAYER: boxes[image["id"]]},
            }
        table.add(row)
    added[TABLE + SUFFIX] = store.put(table.encode(), SUFFIX).file
    return added


def _box(annotation: Entry, classes: Mapping[int, str]) -> Entry:
    x, y, width, height = annotation["bbox"]
    number = int(annotation["category_id"])
    crowd = " (crowd region)" if annotation.get("iscrowd") else ""
    return {
        "position": {"minX": x, "maxX": x + width, "minY": y, "maxY": y + height},
        "class_id": number,
        "box_caption": classes[number] + crowd,
        "domain": "pixel",
    }


def _kind(given: list[Any]) -> Kind:
    """Numbers where all are, and a browser reads each of them exactly; else texts."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given):
        return identifiers([value for value in given if isinstance(value, int)])[0]
    return "string"


def _plain(value: Any, kind: Kind) -> Any:
    if kind == "string" and value is not None and not isinstance(value, str):
        return msgspec.json.encode(value).decode()
    return value
