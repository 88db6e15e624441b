"""What the page counts in the browser is what the analysis, the tables and `predictions diff` say in Python."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tests.browser.test_page import settle
from tests.predicting import prediction_sheet, random_detections, sample_sheet
from unified_tracker.predictions._analysis import show_evaluation, show_sample
from unified_tracker.predictions._comparison import compare
from unified_tracker.predictions._document import Document
from unified_tracker.predictions._summary import summarise

CLASSES = 3


@pytest.fixture(scope="module", params=["boxes", "masks"])
def document(request: pytest.FixtureRequest) -> Document:
    """Two models on one random sample, as the uploader writes it."""
    given = {"images": 25, "objects": 12, "classes": CLASSES, "masks": request.param == "masks"}
    truth, first = random_detections(3, **given)
    _, second = random_detections(4, **given)
    second = {
        image: second.get(image, first[image]) if number % 3 else first[image] for number, image in enumerate(first)
    }
    sample = sample_sheet(truth, CLASSES)
    evaluations = [
        show_evaluation(sample, prediction_sheet(each, CLASSES), id=name, label=name, run="r", step=step, epoch=None)
        for step, (name, each) in enumerate({"first": first, "second": second}.items())
    ]
    return Document("t", "d", sample.classes, sample.category_ids, show_sample(sample), evaluations)


View = Callable[..., Page]


def test_confusion_matrix(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_role("tab", name="Confusion").click()
    cells = [[0] * (CLASSES + 1) for _ in range(CLASSES + 1)]
    for button in page.locator(".confusion td button").all():
        row, column = (int(button.get_attribute(f"data-{name}") or -1) for name in ("row", "column"))
        cells[row][column] = int(button.inner_text())
    assert cells == document.evaluations[-1].confusion["instances"]
    assert sum(cells[i][j] for i in range(CLASSES) for j in range(CLASSES) if i != j) > 0


def test_class_table(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_role("tab", name="Classes").click()
    for row in document.evaluations[-1].classes["instances"]:
        cells = page.locator(f"tr[data-label='{row.label}'] td").all_inner_texts()
        assert cells[5:8] == [str(row.true_positives), str(row.false_positives), str(row.missed)]
        for shown, value in ((cells[0], row.ap), (cells[2], row.precision), (cells[3], row.recall)):
            assert shown == "\u2013" if value is None else float(shown) == pytest.approx(value, abs=5.1e-4)


@pytest.mark.parametrize("iou", [0, 1])
def test_images(view: View, document: Document, iou: int) -> None:
    page = view(document)
    page.get_by_label("order of the images").select_option("order")
    page.get_by_role("group", name="IoU threshold").locator("button").nth(iou).click()
    settle(page)
    cards = page.locator(".grid .item")
    summaries = summarise(document.images, document.evaluations[-1], iou=iou)
    for position, summary in enumerate(summaries[: cards.count()]):
        text = page.locator(f"[aria-posinset='{position + 1}'] .card").get_attribute("aria-label") or ""
        wrong = summary.false_positives
        assert f"{summary.true_positives} true positive" in text
        assert f", {wrong} false positive" in text
        assert f"{summary.missed} missed" in text


def test_comparison(view: View, document: Document) -> None:
    document.comparing = True
    page = view(document)
    changes = compare(document.images, *document.evaluations).changes
    fixed = sum(each.fixed > each.broken for each in changes)
    broken = sum(each.fixed < each.broken for each in changes)
    assert page.locator(".changes button").all_inner_texts() == [
        f"{count} image{'' if count == 1 else 's'} {word}" for count, word in ((fixed, "fixed"), (broken, "broken"))
    ]
    found, lost = (sum(len(getattr(each, name)) for each in changes) for name in ("found", "lost"))
    assert page.locator(".changes .quiet").inner_text() == f"objects: {found} found, {lost} lost"
    page.locator(".card").first.click()
    for _ in range(8):
        name = page.locator("dialog h2.name").inner_text()
        change = next(each for each in changes if each.name == name)
        text = page.locator("dialog .change").inner_text()
        gone = f"{len(change.gone)} error{'' if len(change.gone) == 1 else 's'} gone"
        assert text.endswith(f": {len(change.found)} found, {len(change.lost)} lost, {gone}, {len(change.new)} new")
        rows = page.locator(".object[data-side=prediction]").filter(has=page.locator(".note", has_text="new")).all()
        rows = [int(row.get_attribute("data-index") or -1) for row in rows if row.get_attribute("data-kind") != "t"]
        assert sorted(rows) == change.new
        page.keyboard.press("ArrowRight")
