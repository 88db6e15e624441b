"""Pictures: sample images as they stand in a page, shrunk until all of them fit."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from unified_tracker.predictions._document import Document, ShownImage
from unified_tracker.predictions._page import size_without_pictures
from unified_tracker.predictions._sample import ImageId

PAGE_BYTES: Final = 45 * 2**20  # MLflow shows files of up to 50 MiB
# Longest side of a picture in pixels, best first.
SIDES: Final = (800, 704, 608, 528, 456, 400, 352, 304, 264, 232, 200, 168, 128, 96)
QUALITY: Final = 80  # of WebP; a photograph of 640 x 480 takes 12 KiB, half of a JPEG
_EFFORT: Final = 2  # WebP's method: 4 takes 2.5 times as long and saves 6 %
_TRIED: Final = 12  # images by which a size is chosen

Source = Path | str | npt.NDArray[Any]


def fit_pictures(document: Document, sources: Mapping[ImageId, Source], budget: int = PAGE_BYTES) -> None:
    """Give each image of a document that has none its picture, as large as the budget for the whole page allows.

    Pictures that the document has already are kept while the page stays within the budget; if it does not, all whose
    source is given are made anew, smaller.

    Args:
        document: `src` of its images is filled in, or `why` there is no picture.
        sources: Image id to file or pixels, as in `SampleImage`.
        budget: Bytes of the whole page.
    """
    room = max(budget - size_without_pictures(document), 0)
    named = [image for image in document.images if image.id in sources]
    wanted = [image for image in named if not image.src]
    kept = sum(len(image.src) for image in document.images)
    there = len(document.images) - len(wanted)
    if kept > room or (room - kept) * there < 0.9 * kept * len(wanted):  # no room, or the new ones would be smaller
        wanted = named
        kept -= sum(len(image.src) for image in wanted)
    for side in _sides_that_fit(wanted, sources, room - kept):
        if kept + sum(_fill(image, sources[image.id], side) for image in wanted) <= room:
            return
    for image in wanted:
        image.src, image.why = "", image.why or "the page has no room for pictures"


def picture(source: Source, width: int, height: int, side: int = SIDES[0], quality: int = QUALITY) -> str:
    """A sample image as a data URI: 8 bit, at most `side` pixels long, in the orientation in which boxes are meant.

    Args:
        source: A file; or pixels as in `SampleImage`.
        width, height: Of the image as the framework saw it. A file's EXIF orientation is applied if that is the size
            which comes out, as both frameworks do by default, and only then.
        side: Longest side in pixels; an image that is smaller stays as it is.
        quality: Of WebP, 0 to 100.

    Raises:
        OSError: The file cannot be read, or is no image.
        ValueError: The pixels are of no image.
    """
    if isinstance(source, (str, Path)):
        with Image.open(source) as file:
            if (width, height) == _turned_size(file):
                image = ImageOps.exif_transpose(_drafted(file, side))
            else:
                image = _drafted(file, side)
                image.load()  # before the file is closed
            image = _as_rgb(image)
    else:
        image = Image.fromarray(_as_bytes(np.asarray(source)))
    image.thumbnail((side, side), Image.Resampling.BOX if max(image.size) > 4 * side else Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "WEBP", quality=quality, method=_EFFORT)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def _fill(image: ShownImage, source: Source, side: int) -> int:
    try:
        image.src, image.why = picture(source, image.width, image.height, side), ""
    except FileNotFoundError:
        image.src, image.why = "", "the file is gone"
    except Exception as error:  # noqa: BLE001 -- a file that is no image fails in as many ways as there are formats
        image.src, image.why = "", f"the image cannot be read: {str(error)[:200] or type(error).__name__}"
    return len(image.src)


def _sides_that_fit(images: list[ShownImage], sources: Mapping[ImageId, Source], room: int) -> list[int]:
    """Sizes to try, by some of the images: the first one should do."""
    tried = images[:: max(len(images) // _TRIED, 1)][:_TRIED]
    for position, side in enumerate(SIDES):
        mean = sum(_fill(image, sources[image.id], side) for image in tried) / max(len(tried), 1)
        if mean * len(images) * 1.05 <= room:
            return list(SIDES[position:])
    return list(SIDES[-1:])


def _turned_size(file: Image.Image) -> tuple[int, int]:
    """Size of an image file after its EXIF orientation has been applied."""
    orientation = file.getexif().get(0x0112, 1)
    return (file.height, file.width) if orientation in {5, 6, 7, 8} else file.size


def _drafted(file: Image.Image, side: int) -> Image.Image:
    """A JPEG decoder can shrink while it decodes; that is several times as fast."""
    file.draft(None, (2 * side, 2 * side))
    return file


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return Image.fromarray(_as_bytes(np.asarray(image)))
    if image.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # colours as the frameworks see them: alpha is dropped
    return image if image.mode in {"L", "RGB"} else image.convert("L" if image.mode == "1" else "RGB")


def _as_bytes(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Pixels of any type as 8 bit. What has more than 8 bit is stretched from its darkest to its brightest pixel."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] != 3):
        raise ValueError(f"pixels must have the shape (height, width, 3) or (height, width), not {pixels.shape}")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.bool_:
        bright: npt.NDArray[np.uint8] = np.where(pixels, np.uint8(255), np.uint8(0))
        return bright
    values = np.nan_to_num(pixels.astype(np.float32), posinf=0, neginf=0)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if np.issubdtype(pixels.dtype, np.floating) and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0  # 8-bit values in a wider type
    stretched: npt.NDArray[np.uint8] = ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)
    return stretched
