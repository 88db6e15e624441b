"""The page as a file: what is written is read back, whatever it is; and pictures fit into it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from unified_tracker import RecordError
from unified_tracker.predictions._document import Document, ShownEvaluation, ShownImage, ShownObjects
from unified_tracker.predictions._page import page_bytes, read_page, write_page
from unified_tracker.predictions._pictures import fit_pictures, picture

INF, NAN = float("inf"), float("nan")


def make(count: int = 3, **evaluation: Any) -> Document:
    truth = ShownObjects(l=[0], b=[1.5, 2, 3, 4], m=["PPYo0"], k=[[1.0, 2.0, 2.0]])
    images: list[ShownImage] = [ShownImage(i, f"{i}.jpg", 64, 48, truth={"instances": truth}) for i in range(count)]
    found = ShownObjects(l=[1, 0], b=[0, 0, 9, 9, 1, 1, 2, 2], s=[0.9, 0.1], g=[[-1, 0]], e=["bt"], o=[0.2, 0.7])
    given: dict[str, Any] = {"metrics": {"val/bbox/mAP": 0.5}, "images": [{"instances": found}] * count, **evaluation}
    shown = ShownEvaluation("r/1", "iter 1", "r", "val", 1, None, 0.3, [0.5], **given)
    return Document("title", "set", ["a", "b"], [1, 2], images, [shown])


def photo(rng: np.random.Generator, side: int = 64) -> npt.NDArray[np.uint8]:
    return rng.integers(0, 255, (side * 3 // 4, side, 3)).astype(np.uint8)


def opened(source: str) -> Image.Image:
    kind, _, content = source.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_read_page_gives_what_write_page_was_given(tmp_path: Path) -> None:
    document = make()
    rng = np.random.default_rng(0)
    fit_pictures(document, {0: photo(rng), 2: photo(rng)})
    document.images[1].why = "the file is gone"
    document.evaluations[0].images[1] = None
    write_page(document, tmp_path / "page.html")
    assert read_page(tmp_path / "page.html") == document
    assert document.images[0].src.startswith("data:image/webp;base64,")
    assert page_bytes(document) == page_bytes(document) == (tmp_path / "page.html").read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_what_is_no_number_stands_as_zero_and_metrics_without_value_are_left_out(tmp_path: Path) -> None:
    document = make(metrics={"a": NAN, "b": INF, "c": 1.0})
    document.evaluations[0].images[0] = {"instances": ShownObjects(l=[0], b=[NAN, INF, -INF, 4.0], s=[NAN], o=[0.5])}
    write_page(document, tmp_path / "page.html")
    evaluation = read_page(tmp_path / "page.html").evaluations[0]
    assert evaluation.metrics == {"c": 1.0}
    assert (evaluation.images[0] or {})["instances"] == ShownObjects(l=[0], b=[0, 0, 0, 4], s=[0], o=[0.5])


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    document = make()
    document.title = document.images[0].name = "n\udce9e.jpg"
    write_page(document, tmp_path / "page.html")
    assert read_page(tmp_path / "page.html").images[0].name == "n?e.jpg"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html></html>",
        b'<script type="application/octet-stream" id="document">!</script>',
        b'<script type="application/octet-stream" id="document">AAAA</script>',
        b'<script type="application/octet-stream" id="document">H4sIAAAAAAAC</script>',
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.html").write_bytes(content)
    with pytest.raises(RecordError):
        read_page(tmp_path / "page.html")


def test_page_names_nothing_outside_itself() -> None:
    page = page_bytes(make())
    assert b"http://" not in page
    assert b"https://" not in page
    assert b"innerHTML" not in page
    assert b"insertAdjacentHTML" not in page


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("turned", [False, True])
def test_exif_orientation_is_applied_where_the_framework_has_applied_it(
    tmp_path: Path, orientation: int, turned: bool
) -> None:
    """The picture has the aspect that boxes are meant in; rotations by 180 degrees and mirrors are applied."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255  # top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    swaps = orientation >= 5
    size = (48, 64) if swaps and turned else (64, 48)
    shown = opened(picture(tmp_path / "a.jpg", *size))
    assert shown.size == size
    bright = np.asarray(shown.convert("L")) > 128
    corner = (bool(bright[:10].mean() > 0.3), bool(bright[:, :10].mean() > 0.3))  # top, left
    applied = {1: (1, 1), 2: (1, 0), 3: (0, 0), 4: (0, 1), 5: (1, 1), 6: (1, 0), 7: (0, 0), 8: (0, 1)}
    expected = applied[orientation] if not swaps or turned else (1, 1)
    assert corner == tuple(map(bool, expected))


def grey(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.asarray(opened(picture(values, values.shape[1], values.shape[0])).convert("L"))


@pytest.mark.parametrize(
    "pixels",
    [
        np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16),
        np.linspace(1000, 5000, 64 * 48).reshape(48, 64).astype(np.uint16),
        np.linspace(0, 1, 64 * 48).reshape(48, 64),
        np.linspace(-3, 90, 64 * 48).reshape(48, 64).astype(np.float32),
        np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.int64),
        np.linspace(0, 255, 64 * 48).reshape(48, 64, 1).astype(np.uint8),
    ],
)
def test_pixels_of_any_depth_become_8_bit(pixels: npt.NDArray[Any]) -> None:
    shown = grey(pixels)
    assert shown[0].mean() < 15
    assert shown[-1].mean() > 240


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_files_of_any_mode(tmp_path: Path, mode: str) -> None:
    ramp = np.tile(np.linspace(0, 255, 64), (48, 1))
    if mode in {"I;16", "I", "F"}:
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray((ramp * 200).astype(kinds[mode]))
    elif mode in {"RGBA", "LA"}:
        image = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
        image.putalpha(Image.new("L", (64, 48), 0))  # all transparent: the frameworks see the colours all the same
    else:
        image = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    path = tmp_path / f"名前 é.{'tif' if mode in {'CMYK', 'I;16', 'I', 'F', 'YCbCr'} else 'png'}"
    image.save(path)
    shown = np.asarray(opened(picture(path, 64, 48)).convert("L"))
    assert shown.shape == (48, 64)
    assert shown[:, :6].mean() < 40
    assert shown[:, -6:].mean() > 210


def test_large_images_shrink_and_small_ones_stay(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 1000), "red").save(tmp_path / "a.jpg")
    assert opened(picture(tmp_path / "a.jpg", 4000, 1000)).size == (800, 200)
    assert opened(picture(tmp_path / "a.jpg", 4000, 1000, side=100)).size == (100, 25)
    assert opened(picture(np.zeros((3, 7, 3), np.uint8), 7, 3)).size == (7, 3)


def test_images_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    document = make(5)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    sources: dict[Any, Any] = {
        0: tmp_path / "gone.jpg",
        1: tmp_path / "text.jpg",
        2: np.zeros(3),
        3: tmp_path / "cut.png",
    }
    fit_pictures(document, sources)
    assert [image.src for image in document.images] == [""] * 5
    assert document.images[0].why == "the file is gone"
    assert all("cannot be read" in image.why for image in document.images[1:4])
    assert document.images[4].why == ""


def test_pictures_fit_into_the_budget_and_use_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sources = {i: photo(rng, 256) for i in range(8)}
    sizes = []
    for budget in (10_000_000, 350_000, 230_000):
        document = make(8)
        fit_pictures(document, sources, budget)
        write_page(document, tmp_path / "page.html")
        assert (tmp_path / "page.html").stat().st_size <= budget
        sizes.append(max(opened(document.images[0].src).size))
    assert sizes[0] == 256 > sizes[1] > sizes[2]


def test_no_room_at_all() -> None:
    document = make(3)
    fit_pictures(document, {i: photo(np.random.default_rng(i)) for i in range(3)}, budget=1000)
    assert [(image.src, image.why) for image in document.images] == [("", "the page has no room for pictures")] * 3


def test_pictures_that_are_there_are_kept_as_long_as_there_is_room() -> None:
    rng = np.random.default_rng(0)
    sources = {i: photo(rng, 256) for i in range(8)}
    document = make(8)
    fit_pictures(document, sources)
    kept = document.images[0].src
    document.images[3].src = ""
    fit_pictures(document, sources)
    assert document.images[0].src is kept
    assert document.images[3].src
    fit_pictures(document, sources, budget=300_000)
    assert len(document.images[0].src) < len(kept)
