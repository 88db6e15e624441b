"""Masks as the page decodes them equal pycocotools'."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from playwright.sync_api import Browser, Page
from pycocotools import mask as coco

from tests.browser.documents import make_document
from unified_tracker.predictions._page import write_page


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    target = tmp_path_factory.mktemp("page") / "page.html"
    write_page(make_document(1, 1), target)
    page = browser.new_page()
    page.goto(target.as_uri())
    page.wait_for_selector("#app[aria-busy=false]")
    yield page
    page.close()


DECODE = """([counts, width, height, scale]) => {
  const mask = predictions.maskOf(counts, width, height, scale);
  return mask && {...mask, bits: btoa(Array.from(mask.bits, (bit) => String.fromCharCode(bit)).join(""))};
}"""


def decoded(page: Page, counts: str, width: int, height: int, scale: float = 1) -> npt.NDArray[np.bool_]:
    """A mask as the page has it, (height, width)."""
    part = page.evaluate(DECODE, [counts, width, height, scale])
    result = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), bool)
    if part is not None:
        bits = np.frombuffer(base64.b64decode(part["bits"]), np.uint8).reshape(part["height"], part["width"])
        assert bits.any(axis=0)[[0, -1]].all()
        assert bits.any(axis=1)[[0, -1]].all()
        result[part["top"] : part["top"] + part["height"], part["left"] : part["left"] + part["width"]] = bits
    return result


def encoded(mask: npt.NDArray[Any]) -> str:
    return str(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())


BITMAPS = arrays(
    np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.booleans(), fill=st.booleans()
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(mask=BITMAPS)
def test_any_bitmap(page: Page, mask: npt.NDArray[np.bool_]) -> None:
    assert (decoded(page, encoded(mask), mask.shape[1], mask.shape[0]) == mask).all()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(runs=st.lists(st.integers(1, 60_000), min_size=1, max_size=30))
def test_any_runs(page: Page, runs: list[int]) -> None:
    """Long and short runs in turn: differences of both signs, of up to four characters."""
    height = 997
    width = -(-sum(runs) // height)
    runs = [*runs, width * height - sum(runs)]
    compressed = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"].decode()
    assert page.evaluate("(counts) => predictions.runsOf(counts)", compressed) == runs


@pytest.mark.parametrize("scale", [0.5, 0.31, 0.1])
def test_smaller_masks_take_the_pixel_in_the_middle(page: Page, scale: float) -> None:
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((12, 16)) > 0.6, np.ones((20, 20), bool))
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    there = decoded(page, encoded(mask), mask.shape[1], mask.shape[0], scale)
    assert (there == mask[np.ix_(rows, columns)]).all()


OUTLINE = """([counts, width, height]) => {
  const outline = predictions.outlineOf(counts, width, height, 5000);
  if (!outline) return null;
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.fill(outline.path);
  const { data } = context.getImageData(0, 0, width, height);
  return [outline.area, outline.box, Array.from({ length: width * height }, (_, i) => data[4 * i + 3] > 127)];
}"""


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(mask=BITMAPS)
def test_outline_encloses_exactly_the_mask(page: Page, mask: npt.NDArray[np.bool_]) -> None:
    outline = page.evaluate(OUTLINE, [encoded(mask), mask.shape[1], mask.shape[0]])
    if not mask.any():
        assert outline is None
        return
    area, box, filled = outline
    assert area == mask.sum()
    assert (np.array(filled).reshape(mask.shape) == mask).all()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("counts", ["", "~", "\x00", "ooooooooooo", "0" * 50, "PPPPPPPPPPPPPPPPP", "é", "00000000P"])
def test_counts_that_are_none_do_no_harm(page: Page, counts: str) -> None:
    decoded(page, counts, 30, 20)
    page.evaluate(OUTLINE, [counts, 30, 20])
