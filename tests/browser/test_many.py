"""Many images: 2,000 with 100 objects each, and as many predictions, twice. Limits are those of a busy machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.documents import make_document
from unified_tracker.predictions._document import Document
from unified_tracker.predictions._page import write_page
from unified_tracker.predictions._pictures import PAGE_BYTES

IMAGES = 2000
FIRST_PICTURE_S = 6.0
CHANGE_S = 1.0


@pytest.fixture(scope="module")
def many() -> Document:
    """Forty scenes, fifty times each: a browser cannot tell, and drawing 2,000 takes minutes."""
    document = make_document(40, 100, size=(320, 240))
    times = IMAGES // len(document.images)
    for evaluation in document.evaluations:
        evaluation.images = evaluation.images * times
    document.images = [
        type(image)(number, f"{number}.jpg", image.width, image.height, image.src, "", image.truth)
        for number, image in enumerate(document.images * times)
    ]
    return document


CHANGE = """async (change) => {
  const start = performance.now();
  const slider = document.querySelector(".panel input[type=range]");
  if (change === "slider") {
    slider.value = String(1 - slider.value);
    slider.dispatchEvent(new Event("input"));
  } else document.querySelector(change).click();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))));
  return (performance.now() - start) / 1000;
}"""


def test_it_stays_usable(
    browser: Browser, many: Document, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    target = tmp_path / "page.html"
    write_page(many, target)
    assert target.stat().st_size < PAGE_BYTES
    page = browser.new_page(viewport={"width": 1300, "height": 820})
    page.goto(target.as_uri())
    first = "performance.getEntriesByName('first-picture')[0]?.startTime / 1000"
    while (seconds := page.evaluate(first)) is None:
        page.wait_for_timeout(50)
    assert page.locator(".summary .seen").inner_text() == "2,000 images"
    assert page.locator(".grid .item").count() < 60
    changes = [page.evaluate(CHANGE, what) for what in ("slider", "slider", ".class input", ".class input", ".kind")]
    record_property("page_mib", target.stat().st_size / 2**20)
    record_property("first_picture_s", seconds)
    record_property("change_s", max(changes))
    print(f"{target.stat().st_size / 2**20:.0f} MiB, first picture {seconds:.2f} s, changes {changes}")
    assert seconds < FIRST_PICTURE_S
    assert max(changes) < CHANGE_S
    page.locator(".kind").first.click()
    page.locator(".images").evaluate("(box) => { box.scrollTop = box.scrollHeight }")
    page.locator("[aria-posinset='2000'] img").wait_for()
    page.close()
