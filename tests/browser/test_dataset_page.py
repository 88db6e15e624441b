"""The page of a data set: what is true, by class, and statistics; no word of what only predictions have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.documents import CLASSES, make_document
from tests.browser.test_page import order, seen, settle
from unified_tracker.predictions._document import Document, ShownTable

View = Callable[..., Page]


@pytest.fixture(scope="module")
def document() -> Document:
    made = make_document(24, 6, masks=True, evaluations=0, seed=4)
    made.notes = ["24 of 5,000 images are shown, evenly chosen; the statistics are of all of them"]
    rows: list[list[str | int | float | None]] = [["circle", 12345, 9], ["<i>square</i>", 3, 0]]
    made.tables = [ShownTable("Classes", ["class", "instances", "crowd"], rows)]
    return made


def objects(document: Document, index: int, label: int | None = None) -> int:
    labels = (document.images[index].truth or {})["instances"].l
    return len(labels) if label is None else labels.count(label)


def test_it_counts_true_objects_and_says_nothing_of_scores(view: View, document: Document) -> None:
    page = view(document)
    total = sum(objects(document, index) for index in range(24))
    empty = sum(not objects(document, index) for index in range(24))
    without = f"; {empty} image{'s' * (empty != 1)} without" if empty else ""
    assert seen(page) == "24 images"
    assert page.locator(".summary .tally").inner_text() == f"{total} objects{without}"
    assert "24 of 5,000 images are shown" in page.locator(".summary").inner_text()
    assert order(page)[:6] == [0, 1, 2, 3, 4, 5]
    for item in page.locator(".grid .item").all():
        count = objects(document, int(item.get_attribute("data-index") or -1))
        assert item.locator(".counts").inner_text() == f"{count} object{'s' * (count != 1)}"
    text = page.locator("#app").inner_text()
    for word in ("score", "IoU", "threshold", "Evaluation", "Compare", "Kinds", "missed", "prediction", "F1", "TP"):
        assert not re.search(rf"\b{word}", text), word
    assert page.locator("input[type=range]").count() == 0
    assert [tab.inner_text() for tab in page.locator("[role=tab]:visible").all()] == ["Images", "Statistics"]


def test_classes_are_counted_and_filter_the_images(view: View, document: Document) -> None:
    page = view(document)
    every = Counter(label for image in document.images for label in (image.truth or {})["instances"].l)
    for label, name in enumerate(CLASSES):
        row = page.locator(f".classes [data-label='{label}']")
        assert row.locator(".name").inner_text() == name
        assert row.locator(".number").inner_text() == str(every[label])
    page.locator(".classes [data-label='1'] input").check()
    having = [index for index in range(24) if objects(document, index, 1)]
    assert len(having) < 24
    assert seen(page) == f"{len(having)} of 24 images"
    assert page.locator(".summary .tally").inner_text() == f"{every[1]} objects"
    assert set(order(page)) <= set(having)
    assert page.locator(".classes [data-label='0'] .number").inner_text() == str(every[0])  # not what the filter leaves


def test_the_large_view_has_one_pane_and_the_objects_by_class(view: View, document: Document) -> None:
    page = view(document)
    index = max(range(24), key=lambda each: objects(document, each))
    page.locator("select").first.select_option("objects")
    settle(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("dialog[open] canvas.pane")).to_have_count(1)
    assert page.locator("dialog figcaption").inner_text() == "ground truth"
    assert page.locator("dialog h2.name").inner_text() == document.images[index].name
    counted = Counter((document.images[index].truth or {})["instances"].l)
    heads = [each.inner_text().split("\n") for each in page.locator("dialog .objects h3").all()]
    assert heads == [[CLASSES[label], str(count)] for label, count in sorted(counted.items())]
    assert page.locator("dialog .objects .object").count() == sum(counted.values())
    assert "Nothing at this threshold" not in page.locator("dialog[open]").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("dialog h2.name")).not_to_have_text(document.images[index].name)
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)


def test_statistics_are_those_of_the_whole_data_set(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_role("tab", name="Statistics").click()
    rows = [row.inner_text().split("\t") for row in page.locator(".tables:visible tr").all()]
    assert rows == [["class", "instances", "crowd"], ["circle", "12,345", "9"], ["<i>square</i>", "3", "0"]]


def test_keys_work_and_the_help_names_only_those_that_do(view: View, document: Document) -> None:
    page = view(document)
    pressed = page.locator(".toggles [data-key='labels']")
    expect(pressed).to_have_attribute("aria-pressed", "true")
    for key in ("l", "+", "-", "s", "p"):
        page.keyboard.press(key)
    expect(pressed).to_have_attribute("aria-pressed", "false")
    assert seen(page) == "24 images"
    page.keyboard.press("?")
    said = page.locator("dialog.help").inner_text()
    assert "truth, masks, labels on and off" in said and "score" not in said and "predictions" not in said


def test_settings_are_in_the_address(view: View, document: Document) -> None:
    page = view(document, address="#evaluation=&sort=objects&view=metrics&classes=1&by=class")
    assert page.get_by_role("tab", name="Statistics").get_attribute("aria-selected") == "true"
    assert page.locator(".classes [data-label='1'] input").is_checked()
    page = view(document, address="#evaluation=x&sort=f1&view=confusion&task=panoptic")
    assert page.get_by_role("tab", name="Images").get_attribute("aria-selected") == "true"


def test_a_data_set_without_statistics_or_objects_opens(view: View) -> None:
    page = view(make_document(2, 0, evaluations=0))
    assert page.locator(".summary .tally").inner_text() == "0 objects; 2 images without"
    assert [tab.inner_text() for tab in page.locator("[role=tab]:visible").all()] == ["Images"]
