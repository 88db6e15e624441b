"""The card: `dataset.json`, what a version of a data set says about itself; and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

from unified_tracker.datasets._coco import Coco
from unified_tracker.datasets._pictures import FOLDER, ImageFile
from unified_tracker.datasets._selection import Selection
from unified_tracker.datasets._statistics import Statistics, count

FORMAT: Final = "coco_dataset_json"  # W&B's word
ANNOTATIONS: Final = "annotations.json"
CARD: Final = "dataset.json"
DETECTRON2: Final = "detectron2_metadata.json"
PAGE: Final = "index.html"


class CardFile(msgspec.Struct, frozen=True):
    """An image of the data set: bytes, and SHA-256 in hexadecimal."""

    size: int
    sha256: str


class DatasetCard(msgspec.Struct, frozen=True):
    """`dataset.json`.

    Attributes:
        name: Of the data set.
        format: Of `annotations.json`.
        digest: Of the content: SHA-256 over `annotations.json` and each image's name and SHA-256, in hexadecimal. The
            same whether images are copied, linked or referenced.
        images, annotations: Counts.
        classes: Class name to instances.
        sizes: Instances by COCO's areas: "small", "medium", "large".
        selection: How it was cut out of its source.
        statistics: The same and more, class by class.
        files: "images/<file name>" to the image.
    """

    name: str
    format: str
    digest: str
    images: int
    annotations: int
    classes: dict[str, int]
    sizes: dict[str, int]
    selection: Selection
    statistics: Statistics
    files: dict[str, CardFile]

    @classmethod
    def of(cls, name: str, coco: Coco, files: Mapping[str, ImageFile], selection: Selection) -> DatasetCard:
        """The card of a data set whose files have been looked at."""
        statistics = count(coco)
        classes: dict[str, int] = {}
        for each in statistics.classes:  # two categories may share a name
            classes[each.name] = classes.get(each.name, 0) + each.instances
        there = {f"{FOLDER}/{file}": CardFile(found.size, found.sha256) for file, found in sorted(files.items())}
        return cls(
            name,
            FORMAT,
            dataset_digest(coco.encode(), {path: file.sha256 for path, file in there.items()}),
            statistics.images,
            statistics.annotations,
            classes,
            statistics.sizes,
            selection,
            statistics,
            there,
        )

    def encode(self) -> bytes:
        """As it is written."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def decode(cls, content: bytes) -> DatasetCard:
        """The reverse of `encode`; raises `msgspec.MsgspecError`."""
        return msgspec.json.decode(content, type=cls)


def dataset_digest(annotations: bytes, images: Mapping[str, str]) -> str:
    """The identity of a data set.

    Args:
        annotations: Content of `annotations.json`, canonical (`Coco.encode`).
        images: Path in the artifact to SHA-256.
    """
    whole = hashlib.sha256(annotations)
    for path, sha256 in sorted(images.items()):
        whole.update(f"\n{sha256}  {path}".encode())
    return whole.hexdigest()


def detectron2_metadata(coco: Coco) -> bytes:
    """`detectron2_metadata.json`, as W&B's demo has it: classes in the order of ids, and what they are numbered by."""
    content = {
        "thing_classes": [each["name"] for each in coco.categories],
        "thing_dataset_id_to_contiguous_id": {str(each["id"]): place for place, each in enumerate(coco.categories)},
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=1)
