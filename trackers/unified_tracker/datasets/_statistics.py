"""Statistics: how many images and objects a data set has, of which class and size."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec

from unified_tracker.datasets._coco import Coco, area_of

SMALL, MEDIUM = 32**2, 96**2  # COCO's areas in pixels: small is below the first, large from the second on
SIZES: Final = ("small", "medium", "large")
MOST_SIZES: Final = 20
CLASS_COLUMNS: Final = ["class", "instances", "images", *SIZES, "crowd"]


class ClassCount(msgspec.Struct, frozen=True):
    """One class.

    Attributes:
        instances: Objects, crowd regions among them.
        images: Images that have one.
        small, medium, large: Objects by COCO's areas.
        crowd: Crowd regions.
    """

    name: str
    instances: int
    images: int
    small: int
    medium: int
    large: int
    crowd: int


class Statistics(msgspec.Struct, frozen=True):
    """A data set in numbers.

    Attributes:
        images, annotations, crowd: Counts.
        unannotated: Images without any annotation that counts: such are not selected, and left by broken ones.
        classes: Each category of the data set, in the order of ids, those that do not occur among them.
        sizes: Objects by COCO's areas.
        image_sizes: "640x480" to a count, the most frequent 20.
        other_image_sizes: Images of other sizes.
    """

    images: int
    annotations: int
    crowd: int
    unannotated: int
    classes: list[ClassCount]
    sizes: dict[str, int]
    image_sizes: dict[str, int]
    other_image_sizes: int

    def class_rows(self) -> list[list[Any]]:
        """The classes as rows of a table with `CLASS_COLUMNS`."""
        return [list(msgspec.structs.astuple(each)) for each in self.classes]


def size_of(area: float) -> str:
    """COCO's word for an area in pixels."""
    return "small" if area < SMALL else "medium" if area < MEDIUM else "large"


def count(coco: Coco) -> Statistics:
    """Count a data set."""
    instances: Counter[tuple[int, str]] = Counter()
    having: dict[int, set[Any]] = {category["id"]: set() for category in coco.categories}
    for annotation in coco.annotations:
        number = annotation["category_id"]
        instances[number, "all"] += 1
        instances[number, size_of(area_of(annotation))] += 1
        instances[number, "crowd"] += bool(annotation.get("iscrowd"))
        having[number].add(annotation["image_id"])
    classes = [
        ClassCount(
            each["name"],
            instances[each["id"], "all"],
            len(having[each["id"]]),
            instances[each["id"], "small"],
            instances[each["id"], "medium"],
            instances[each["id"], "large"],
            instances[each["id"], "crowd"],
        )
        for each in coco.categories
    ]
    sides = Counter(f"{image['width']}x{image['height']}" for image in coco.images)
    common = sorted(sides.items(), key=lambda each: (-each[1], each[0]))[:MOST_SIZES]
    return Statistics(
        len(coco.images),
        len(coco.annotations),
        sum(each.crowd for each in classes),
        len(coco.images) - len(set().union(*having.values())),
        classes,
        {size: sum(getattr(each, size) for each in classes) for size in SIZES},
        dict(common),
        len(coco.images) - sum(number for _, number in common),
    )
