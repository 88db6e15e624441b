"""Changes: what two versions of a data set do not have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from unified_tracker._errors import TrackerError
from unified_tracker.datasets._card import ANNOTATIONS, CARD, CardFile, DatasetCard
from unified_tracker.datasets._coco import Coco, Entry, canonical, read_coco
from unified_tracker.datasets._flaws import Flaws

HOW: Final = ("added", "removed", "changed")


class ClassChange(msgspec.Struct):
    """Annotations of one class."""

    added: int = 0
    removed: int = 0
    changed: int = 0


class Changes(msgspec.Struct):
    """From one data set to another.

    Images are recognised by their file names, so that new ids alone are no change; annotations by what they say, and
    where that has changed by their ids; categories by their names.

    Attributes:
        images_added, images_removed, images_changed: File names, sorted. Changed: other bytes, or another size.
        annotations_added, annotations_removed, annotations_changed: Counts, those of added and removed images included.
        classes: Class name to its annotations; classes without a change are not there.
        categories_added, categories_removed, categories_changed: Names. Changed: another id or supercategory.
        files_compared: False where one side does not say what is in its image files.
    """

    images_added: list[str]
    images_removed: list[str]
    images_changed: list[str]
    annotations_added: int
    annotations_removed: int
    annotations_changed: int
    classes: dict[str, ClassChange]
    categories_added: list[str]
    categories_removed: list[str]
    categories_changed: list[str]
    files_compared: bool = True

    def __bool__(self) -> bool:
        return any(self.counts().values())

    def counts(self) -> dict[str, int]:
        """Each kind of change as a number."""
        kinds = [f"{what}_{how}" for what in ("images", "annotations", "categories") for how in HOW]
        found = {kind: getattr(self, kind) for kind in kinds}
        return {kind: value if isinstance(value, int) else len(value) for kind, value in found.items()}


@dataclass(frozen=True)
class Content:
    """A data set as it is compared.

    Attributes:
        files: "images/<file name>" to the image; None where nobody has said.
    """

    coco: Coco
    files: Mapping[str, CardFile] | None = None


def read_content(place: Path) -> Content:
    """A data set from a folder with `annotations.json` (and `dataset.json`), or from a COCO file alone.

    Raises:
        TrackerError: There is none.
        OSError: It cannot be read.
    """
    if place.is_file():
        return Content(read_coco(place, Flaws()))
    if not (place / ANNOTATIONS).is_file():
        what = f"holds no data set ({ANNOTATIONS})" if place.is_dir() else "is neither a file nor a folder"
        raise TrackerError(f"{place} {what}")
    coco = read_coco(place / ANNOTATIONS, Flaws())
    card = place / CARD
    if not card.is_file():
        return Content(coco)
    try:
        return Content(coco, DatasetCard.decode(card.read_bytes()).files)
    except msgspec.MsgspecError as error:
        raise TrackerError(f"{card} cannot be read: {error}") from error


def compare(before: Content, after: Content) -> Changes:
    """What has changed from one data set to another."""
    old, new = _images(before), _images(after)
    compared = before.files is not None and after.files is not None
    if not compared:
        old, new = ({name: image[:1] for name, image in each.items()} for each in (old, new))
    classes: defaultdict[str, ClassChange] = defaultdict(ClassChange)
    sides = _Objects.of(before.coco), _Objects.of(after.coco)
    for name in sorted({*sides[0].images, *sides[1].images}):
        _compare_objects(sides[0].images.get(name, []), sides[1].images.get(name, []), classes)
    was, now = _categories(before.coco), _categories(after.coco)
    return Changes(
        sorted(new.keys() - old.keys()),
        sorted(old.keys() - new.keys()),
        sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
        sum(each.added for each in classes.values()),
        sum(each.removed for each in classes.values()),
        sum(each.changed for each in classes.values()),
        dict(sorted(classes.items())),
        sorted(now.keys() - was.keys()),
        sorted(was.keys() - now.keys()),
        sorted(name for name in was.keys() & now.keys() if was[name] != now[name]),
        compared,
    )


@dataclass(frozen=True)
class _Object:
    """An annotation: its id, its class, and what it says beside them."""

    id: Any
    name: str
    said: bytes


@dataclass
class _Objects:
    images: dict[str, list[_Object]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, coco: Coco) -> _Objects:
        files = {image["id"]: image["file_name"] for image in coco.images}
        names = {category["id"]: category["name"] for category in coco.categories}
        found = cls()
        for annotation in coco.annotations:
            said = {key: value for key, value in annotation.items() if key not in {"id", "image_id", "category_id"}}
            each = _Object(annotation["id"], names[annotation["category_id"]], _encoded(said))
            found.images[files[annotation["image_id"]]].append(each)
        return found


def _compare_objects(before: Iterable[_Object], after: Iterable[_Object], classes: dict[str, ClassChange]) -> None:
    """The objects of one image: what says the same is the same, whatever its id; of the rest, what has the same id."""
    old, new = list(before), list(after)
    same = Counter((each.name, each.said) for each in old) & Counter((each.name, each.said) for each in new)
    old, new = _without(old, same.copy()), _without(new, same)
    ids = {each.id: each for each in new}
    for each in old:
        if each.id in ids:
            classes[ids.pop(each.id).name].changed += 1
        else:
            classes[each.name].removed += 1
    for each in ids.values():
        classes[each.name].added += 1


def _without(objects: list[_Object], same: Counter[tuple[str, bytes]]) -> list[_Object]:
    rest = []
    for each in objects:
        if same[each.name, each.said]:
            same[each.name, each.said] -= 1
        else:
            rest.append(each)
    return rest


def _images(content: Content) -> dict[str, tuple[Any, ...]]:
    """File name to what makes an image another one: its size and bytes."""
    files = content.files or {}
    return {
        image["file_name"]: ((image.get("width"), image.get("height")), files.get(f"images/{image['file_name']}"))
        for image in content.coco.images
    }


def _categories(coco: Coco) -> dict[str, tuple[Any, ...]]:
    return {each["name"]: (each["id"], each.get("supercategory")) for each in coco.categories}


def _encoded(value: Entry) -> bytes:
    return msgspec.json.encode(canonical(value), order="sorted")
