"""The image files of a data set: read once each, hashed, and opened to see that they are what they should be."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from unified_tracker.datasets._coco import Coco, Entry
from unified_tracker.datasets._flaws import FlawKind, Flaws

THREADS: Final = min(8, 2 + (os.cpu_count() or 1))
AHEAD: Final = 64  # files that are looked at before their turn
ORIENTATION: Final = 0x0112
TURNED: Final = frozenset({5, 6, 7, 8})  # orientations in which width and height change places
FOLDER: Final = "images"


@dataclass(frozen=True)
class ImageFile:
    """A file that has been looked at.

    Attributes:
        path: Absolute.
        size, mtime_ns: When it was read.
        sha256: Of the bytes, hexadecimal.
        sides: Width and height in pixels: as a framework sees it that obeys the file's EXIF orientation, and as it is
            stored, where that is another one.
    """

    path: Path
    size: int
    mtime_ns: int
    sha256: str
    sides: tuple[tuple[int, int], ...]

    def changed(self) -> bool:
        """Whether it is another file by now."""
        try:
            stat = self.path.stat()
        except OSError:
            return True
        return (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime_ns)


Looked = ImageFile | tuple[FlawKind, str]


def look_at_images(
    coco: Coco, folder: Path, flaws: Flaws, tick: Callable[[], None] = lambda: None
) -> tuple[Coco, dict[str, ImageFile]]:
    """Look at the file of each image of a data set.

    Args:
        coco: The data set.
        folder: Where its images are.
        flaws: Are added to; such images are left out, with their annotations.
        tick: Called after each image.

    Returns:
        What is left of the data set, with the sizes of images filled in that it did not say; and file name to file.

    Blocking: reads every file once, in a few threads.
    """
    kept: list[Entry] = []
    files: dict[str, ImageFile] = {}
    for image, found in zip(coco.images, _looked([folder / image["file_name"] for image in coco.images]), strict=True):
        tick()
        name = f"image {image['id']}, {image['file_name']!r}"
        if not isinstance(found, ImageFile):
            flaws.add(found[0], f"{name}{found[1]}")
            continue
        said = (image.get("width"), image.get("height"))
        if said == (None, None):
            image = {**image, "width": found.sides[0][0], "height": found.sides[0][1]}
        elif said not in found.sides:
            width, height = found.sides[0]
            flaws.add("size differs", f"{name}: {said[0]} x {said[1]} pixels are said, it has {width} x {height}")
            continue
        kept.append(image)
        files[image["file_name"]] = found
    there = {image["id"] for image in kept}
    annotations = [each for each in coco.annotations if each["image_id"] in there]
    return Coco(kept, annotations, coco.categories, coco.licenses), files


def _looked(paths: list[Path]) -> Iterator[Looked]:
    """What becomes of each file, in their order; a few are read ahead, never all."""
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # of large pictures and odd metadata: frameworks take them
        rest = iter(paths)
        waiting = [pool.submit(_look, path) for path in islice(rest, AHEAD)]
        for _ in paths:
            found = waiting.pop(0).result()
            waiting += [pool.submit(_look, path) for path in islice(rest, 1)]
            yield found


def _look(path: Path) -> Looked:
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return "missing image", f": {path} is not there"
    except (OSError, ValueError) as error:
        return "unreadable image", f": {getattr(error, 'strerror', None) or error}"
    try:
        sides = _sides(content)
    except Exception as error:  # noqa: BLE001 -- a file that is no image fails in as many ways as there are formats
        return "unreadable image", f": {str(error)[:100] or type(error).__name__}"
    return ImageFile(path.absolute(), stat.st_size, stat.st_mtime_ns, hashlib.sha256(content).hexdigest(), sides)


def _sides(content: bytes) -> tuple[tuple[int, int], ...]:
    """Decode a picture as cheaply as it can be, so that one that was cut short is found."""
    from PIL import Image  # not for commands that read no picture

    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        turned = image.getexif().get(ORIENTATION, 1) in TURNED
        image.draft(None, (width // 8, height // 8))
        image.load()
    return ((height, width), (width, height)) if turned else ((width, height),)
