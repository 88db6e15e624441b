"""Pictures as a browser shows them: the file of the data set itself wherever it can be, else one made of it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from unified_tracker.backends._wandb_store import Store, Stored, stored
from unified_tracker.predictions._document import ShownImage
from unified_tracker.predictions._pictures import picture

SHOWN: Final = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}  # by every browser
MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})  # 8 bit
ORIENTATION: Final = 0x0112
TURNED: Final = frozenset({5, 6, 7, 8})  # orientations in which width and height change places
QUALITY: Final = 95
GREY: Final = 160


@dataclass(frozen=True)
class Picture:
    """A picture in an artifact.

    Attributes:
        path: Name in the artifact.
        why: Why it is a grey one; "" if it is not.
    """

    path: str
    file: Stored
    why: str = ""


def shown_picture(image: ShownImage, file: Path | None, path: str, store: Store) -> Picture:
    """The picture of an image, of the size in which its boxes are meant.

    Args:
        image: With its size.
        file: The original; None if it is gone.
        path: Where the original stands in the artifact. What is made of it stands beside it, by content.
        store: Keeps what is made.
    """
    why = image.why or "the picture could not be had"
    if file is not None:
        try:
            if _shown_as_it_is(file, image.width, image.height):
                return Picture(path, stored(file))
            source = np.load(file, allow_pickle=False) if file.suffix == ".npy" else file
            whole = max(image.width, image.height)
            content = picture(source, image.width, image.height, side=whole, quality=QUALITY)
        except FileNotFoundError:
            why = "the file is gone"
        except Exception as error:  # noqa: BLE001 -- a file that is no image fails in as many ways as there are formats
            why = f"the picture cannot be read: {str(error)[:200] or type(error).__name__}"
        else:
            made = store.put(base64.b64decode(content.partition(",")[2]), ".webp")
            return Picture(f"media/images/{made.name}.webp", made)
    made = store.put(_grey(image.width, image.height), ".png")
    return Picture(f"media/images/{made.name}.png", made, why)


def _shown_as_it_is(file: Path, width: int, height: int) -> bool:
    """True if a browser shows a file in the orientation in which its boxes are meant: it obeys the file's own word."""
    if file.suffix == ".npy":
        return False
    with Image.open(file) as opened:
        if opened.format not in SHOWN or opened.mode not in MODES:
            return False
        turned = opened.getexif().get(ORIENTATION, 1) in TURNED
        return (width, height) == ((opened.height, opened.width) if turned else opened.size)


def _grey(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (max(width, 1), max(height, 1)), GREY).save(content, "PNG")
    return content.getvalue()
