"""COCO: a data set as its annotation file describes it, with everything taken out that cannot be trained on."""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, Final

import msgspec

from unified_tracker._errors import TrackerError
from unified_tracker.datasets._flaws import Flaws

PARTS: Final = ("images", "annotations", "categories")
EXACT: Final = 1 << 53  # whole numbers up to here are the same as floats
LARGEST: Final = 1 << 63
Entry = dict[str, Any]


@dataclass
class Coco:
    """A COCO data set.

    Attributes:
        images, annotations, categories: Each sorted by id; numbers and texts in their canonical form.
        licenses: As the source has them.
    """

    images: list[Entry] = field(default_factory=list)
    annotations: list[Entry] = field(default_factory=list)
    categories: list[Entry] = field(default_factory=list)
    licenses: list[Any] = field(default_factory=list)

    def encode(self) -> bytes:
        """`annotations.json`: the same bytes for the same data set, whatever the order and format of the source."""
        content = {
            "info": {},  # dates and versions of a tool: as in W&B's demo, no part of the content
            "licenses": self.licenses,
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
        return msgspec.json.encode(content, order="sorted")


def read_json(path: Path) -> Coco:
    """A COCO data set from its file, as it stands there: nothing is checked but that it is one.

    Raises:
        TrackerError: The file is no JSON, or JSON of something else; says of what.
        OSError: It cannot be read.
    """
    content = _parsed(path)
    if isinstance(content, list):
        raise TrackerError(f"{path} is no COCO data set: it is a list, as COCO results are")
    if not isinstance(content, dict):
        raise TrackerError(f"{path} is no COCO data set: it holds {type(content).__name__}, not an object")
    missing = [part for part in PARTS if not isinstance(content.get(part), list)]
    if missing:
        there = ", ".join(map(repr, list(content)[:8])) or "nothing"
        raise TrackerError(f"{path} is no COCO data set: it has no list of {' and '.join(missing)}, but {there}")
    licenses = content.get("licenses")
    images, annotations, categories = (content[part] for part in PARTS)
    return Coco(images, annotations, categories, licenses if isinstance(licenses, list) else [])


def read_coco(path: Path, flaws: Flaws) -> Coco:
    """A COCO data set from its file, without what is broken by what the file itself says.

    Of entries with the same id, and of images with the same file name, the first one stays. Annotations of an image
    that is left out go with it. No image file is looked at.

    Raises:
        TrackerError, OSError: As `read_json`.
    """
    given = read_json(path)
    categories = dict(_categories(given.categories, flaws))
    images = dict(_images(given.images, flaws))
    known = {_identity(image.get("id")) for image in given.images if isinstance(image, dict)}
    annotations = dict(_annotations(given.annotations, images, known, categories, flaws))
    licenses = [canonical(each) for each in given.licenses if _is_finite(each)]
    return Coco(_by_id(images), _by_id(annotations), _by_id(categories), licenses)


def canonical(value: Any) -> Any:
    """The one form of a value: 10.0 is 10, half a surrogate pair is "?". Keys are sorted when it is written.

    Raises:
        ValueError: It holds a NaN or an infinity, for which JSON has no word, or an integer beyond 64 bits.
    """
    kind = type(value)
    if kind is int and not -LARGEST <= value < LARGEST:
        raise ValueError(f"{value} has more than 64 bits")
    if kind is float:
        if value.is_integer() and -EXACT <= value <= EXACT:
            return int(value)
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number")
        return value
    if kind is str:
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if kind is list:
        return [canonical(each) for each in value]
    if kind is dict:
        return {canonical(key): canonical(each) for key, each in value.items()}
    return value


def safe_name(name: str) -> str | None:
    """A file name as it stands below `images/`, in its normal form; None if it could lead elsewhere.

    Folders stay as they are. Refused: absolute names, `..`, NUL, and what means a path on Windows.
    """
    if not name or "\0" in name or "\\" in name or PureWindowsPath(name).drive:
        return None
    try:
        name.encode()
    except UnicodeEncodeError:
        return None
    normal = posixpath.normpath(name)
    if normal.startswith("/") or normal in {".", ".."} or ".." in name.split("/") or name.endswith("/"):
        return None
    return normal


def box_of(annotation: Entry) -> tuple[float, float, float, float]:
    """x, y, width and height in pixels."""
    x, y, width, height = annotation["bbox"]
    return x, y, width, height


def area_of(annotation: Entry) -> float:
    """Pixels: as annotated, else of the box."""
    area = annotation.get("area")
    if isinstance(area, (int, float)) and not isinstance(area, bool) and area > 0:
        return area
    _, _, width, height = box_of(annotation)
    return width * height


def order_of(identity: Any) -> tuple[bool, Any]:
    """Sorts ids: numbers, then texts."""
    return isinstance(identity, str), identity


# ---- reading -------------------------------------------------------------------------------------------------------


def _parsed(path: Path) -> Any:
    content = path.read_bytes()
    try:
        return msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        try:
            return json.loads(content)  # slower; knows NaN, which many a script writes
        except (ValueError, RecursionError) as error:
            raise TrackerError(f"{path} is no JSON: {error}") from error


def _categories(given: list[Any], flaws: Flaws) -> Iterator[tuple[int, Entry]]:
    taken: set[int] = set()
    for place, category in enumerate(given):
        number = _whole(category.get("id")) if isinstance(category, dict) else None
        if number is None or not isinstance(category.get("name"), str) or not _is_finite(category):
            flaws.add("malformed entry", f"category {place} of the list: {shown(category)}")
        elif number in taken:
            flaws.add("duplicate category id", f"category {number}, {category['name']!r}")
        else:
            taken.add(number)
            yield number, canonical(category)


def _images(given: list[Any], flaws: Flaws) -> Iterator[tuple[Any, Entry]]:
    taken: set[Any] = set()
    names: dict[str, Any] = {}
    for place, image in enumerate(given):
        identity = _identity(image.get("id")) if isinstance(image, dict) else None
        if identity is None or not isinstance(image.get("file_name"), str) or not _is_sized(image):
            flaws.add("malformed entry", f"image {place} of the list: {shown(image)}")
            continue
        name = safe_name(image["file_name"])
        if identity in taken:
            flaws.add("duplicate image id", f"image {identity}, {image['file_name']!r}")
        elif name is None:
            flaws.add("unsafe file name", f"image {identity}: {image['file_name']!r}")
        elif name in names:
            flaws.add("duplicate file name", f"image {identity} has {name!r}, as image {names[name]} has")
        elif not _is_finite(image):
            flaws.add("not a number", f"image {identity}, {name!r}")
        else:
            taken.add(identity)
            names[name] = identity
            yield identity, {**canonical(image), "file_name": name}


def _annotations(
    given: list[Any], images: dict[Any, Entry], known: set[Any], categories: dict[int, Entry], flaws: Flaws
) -> Iterator[tuple[Any, Entry]]:
    taken: set[Any] = set()
    for place, annotation in enumerate(given):
        identity = _identity(annotation.get("id")) if isinstance(annotation, dict) else None
        if identity is None:
            flaws.add("malformed entry", f"annotation {place} of the list: {shown(annotation)}")
            continue
        image_id, category = _identity(annotation.get("image_id")), _whole(annotation.get("category_id"))
        name = f"annotation {identity} of image {image_id}"
        if identity in taken:
            flaws.add("duplicate annotation id", name)
        elif image_id is None or image_id not in known:
            flaws.add("unknown image", f"annotation {identity}: image {shown(annotation.get('image_id'))}")
        elif image_id not in images:
            continue  # counted with its image
        elif category not in categories:
            flaws.add("unknown category", f"{name}: category {shown(annotation.get('category_id'))}")
        elif why := degenerate(annotation.get("bbox"), images[image_id]):
            flaws.add("degenerate box", f"{name}: {why}")
        elif not _is_finite(annotation):
            flaws.add("not a number", name)
        else:
            taken.add(identity)
            yield identity, canonical(annotation)


def degenerate(box: Any, image: Entry) -> str:
    """Why a box encloses nothing of its image; "" if it does. One that reaches beyond the edge is fine."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"the box is {shown(box)}"
    x, y, width, height = box
    if not all(map(math.isfinite, box)):
        return f"the box {shown(box)} holds no numbers"
    if width <= 0 or height <= 0:
        return f"the box is {width} x {height} pixels"
    right, bottom = image.get("width", math.inf), image.get("height", math.inf)
    if x >= right or y >= bottom or x + width <= 0 or y + height <= 0:
        return f"the box {shown(box)} is outside the image, {right} x {bottom} pixels"
    return ""


def shown(value: Any) -> str:
    """A value in few words."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _by_id(entries: dict[Any, Entry]) -> list[Entry]:
    return [entries[key] for key in sorted(entries, key=order_of)]


def _identity(value: Any) -> Any:
    """An id of an image or annotation: a whole number or a text; None for anything else."""
    return value if isinstance(value, str) and value else _whole(value)


def _whole(value: Any) -> int | None:
    """A whole number, also one that a tool has written as 1.0; None for anything else."""
    if not _is_number(value) or not float(value).is_integer():
        return None
    return int(value)


def _is_number(value: Any) -> bool:
    """A number that a float can hold; NaN and infinities among them."""
    return isinstance(value, float) or (type(value) is int and -LARGEST <= value < LARGEST)


def _is_sized(image: Entry) -> bool:
    """Width and height are whole numbers of pixels, or both not said: then the file says them."""
    sides = [image.get("width"), image.get("height")]
    if sides == [None, None]:
        return True
    return all((_whole(side) or 0) > 0 for side in sides)


def _is_finite(value: Any) -> bool:
    try:
        canonical(value)
    except (ValueError, RecursionError):
        return False
    return True
