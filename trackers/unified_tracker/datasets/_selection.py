"""The selection: which images of a data set are taken, by category and by fraction. That of W&B's demo, exactly."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Final

import msgspec

from unified_tracker._errors import ConfigurationError, TrackerError
from unified_tracker.datasets._coco import Coco, order_of

NAMED: Final = 12  # names in an error


class Selection(msgspec.Struct, frozen=True):
    """Which images are taken.

    Images that have an annotation of a chosen category, sorted by id: n of them. Of these, `int(select_fraction * n)`
    are taken, from number `int(after_fraction * n)` on. So fractions that add up cut a data set into parts that share
    nothing, whoever cuts them, and whichever of its files are missing.

    Annotations of other categories are left out; the categories themselves all stay, so that labels mean the same in
    every part.

    Attributes:
        categories, supercategories: By name. With both, a category must be in `categories` and its supercategory in
            `supercategories`, as W&B's demo and pycocotools have it. With neither, all categories are chosen.
        select_fraction, after_fraction: 0 to 1.
    """

    categories: tuple[str, ...] = ()
    supercategories: tuple[str, ...] = ()
    select_fraction: float = 1.0
    after_fraction: float = 0.0

    def check(self) -> None:
        """Raise a `ConfigurationError` for what is no fraction."""
        for name in ("select_fraction", "after_fraction"):
            value = getattr(self, name)
            if not math.isfinite(value) or not 0 <= value <= 1:
                raise ConfigurationError(f"{name} must be 0 to 1, not {value}")

    def apply(self, coco: Coco) -> Coco:
        """The part of a data set that is selected.

        Raises:
            TrackerError: It has no category of such a name, or nothing is selected.
        """
        chosen = self._category_ids(coco)
        mine = [each for each in coco.annotations if each["category_id"] in chosen]
        having = sorted({each["image_id"] for each in mine}, key=order_of)
        taken = set(having[self.slice(len(having))])
        if not taken:
            what = f"{len(having)} images that have annotations of the chosen categories"
            raise TrackerError(
                f"nothing is selected: {what}, after_fraction {self.after_fraction:g}, "
                f"select_fraction {self.select_fraction:g}"
            )
        images = [image for image in coco.images if image["id"] in taken]
        annotations = [each for each in mine if each["image_id"] in taken]
        return Coco(images, annotations, coco.categories, coco.licenses)

    def slice(self, count: int) -> slice:
        """Which of so many images, sorted by id."""
        start = int(self.after_fraction * count)
        return slice(start, start + int(self.select_fraction * count))

    def _category_ids(self, coco: Coco) -> set[int]:
        _refuse_unknown("category", self.categories, {each["name"] for each in coco.categories})
        supers = {str(each["supercategory"]) for each in coco.categories if "supercategory" in each}
        _refuse_unknown("supercategory", self.supercategories, supers)
        return {
            each["id"]
            for each in coco.categories
            if (not self.categories or each["name"] in self.categories)
            and (not self.supercategories or each.get("supercategory") in self.supercategories)
        }


def _refuse_unknown(what: str, given: Iterable[str], known: set[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            there = ", ".join(sorted(known)[:NAMED]) + (f" and {len(known) - NAMED} more" if len(known) > NAMED else "")
            hint = f"did you mean {near[0]!r}?" if near else f"there are {there or 'none'}"
            raise TrackerError(f"the data set has no {what} {name!r}; {hint}")
