"""The page, driven by a browser: what it shows equals what is counted in Python from the document."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.documents import CLASSES, count, f1, make_document
from unified_tracker.predictions._document import Document

View = Callable[..., Page]
LETTERS = {
    "m": "missed",
    "c": "wrong class",
    "l": "badly placed",
    "d": "duplicate",
    "b": "background",
    "t": "true positive",
}


@pytest.fixture(scope="module")
def document() -> Document:
    return make_document(30, 6, masks=True, seed=1)


def counts(document: Document, threshold: float, **at: Any) -> list[dict[str, int]]:
    return [count(document, index, threshold, **at) for index in range(len(document.images))]


def total(each: Iterable[dict[str, int]], letters: str) -> int:
    return sum(kinds[letter] for kinds in each for letter in letters)


def shown_kinds(page: Page) -> dict[str, int]:
    rows = page.locator(".kinds .kind").all()
    return {row.get_attribute("data-key") or "": int(row.locator("b").inner_text().replace(",", "")) for row in rows}


def order(page: Page) -> list[int]:
    """Indices of the images whose cards are in sight, as they stand."""
    cards = page.locator(".grid .item").evaluate_all(
        "items => items.map(item => [Number(item.getAttribute('aria-posinset')), Number(item.dataset.index)])"
    )
    return [index for _, index in sorted(cards)]


def move_slider(page: Page, value: float) -> None:
    page.locator(".panel input[type=range]").fill(str(value))
    settle(page)


def settle(page: Page) -> None:
    """Until two frames have been drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def seen(page: Page) -> str:
    return page.locator(".summary .seen").inner_text()


def said(images: int, of: int = 30) -> str:
    return f"{of} images" if images == of else f"{images} of {of} images"


def fact(page: Page, name: str) -> float:
    return float(page.locator(f"[data-fact='{name}'] b").inner_text())


def check_counts(page: Page, kinds: list[dict[str, int]]) -> None:
    """Panel, summary and cards."""
    shown = shown_kinds(page)
    assert {letter: shown[letter] for letter in LETTERS} == {letter: total(kinds, letter) for letter in LETTERS}
    right, wrong, missed = total(kinds, "t"), total(kinds, "bcld"), total(kinds, "m")
    assert page.locator(".summary .tally").inner_text() == f"{right} TP · {wrong} FP · {missed} missed"
    assert fact(page, "precision") == pytest.approx(right / (right + wrong), abs=5e-4)
    assert fact(page, "recall") == pytest.approx(right / (right + missed), abs=5e-4)
    assert fact(page, "F1") == pytest.approx(2 * right / (2 * right + wrong + missed), abs=5e-4)
    for item in page.locator(".grid .item").all():
        each = kinds[int(item.get_attribute("data-index") or -1)]
        text = item.locator(".counts").inner_text().split("\n")
        score = "\u2013" if math.isnan(f1(each)) else f"{f1(each):.2f}"
        expected = [f"{each['t']} TP", f"{sum(each[letter] for letter in 'bcld')} FP", f"{each['m']} missed"]
        assert text[1:4] == expected
        assert text[0] == f"F1 {score}" or abs(float(text[0][3:]) - f1(each)) <= 0.0051


def test_starts_at_the_threshold_of_the_newest_evaluation_worst_first(view: View, document: Document) -> None:
    page = view(document)
    kinds = counts(document, 0.3)
    assert seen(page) == "30 images"
    check_counts(page, kinds)
    errors = [total([each], "bcldm") for each in kinds]
    worst = sorted(range(30), key=lambda i: (f1(kinds[i]) if not math.isnan(f1(kinds[i])) else 2, -errors[i], i))
    there = order(page)
    assert len(there) >= 8
    assert there == worst[: len(there)]


@pytest.mark.parametrize("threshold", [0.0, 0.45, 0.8, 1.0])
def test_slider_counts_everything_anew(view: View, document: Document, threshold: float) -> None:
    page = view(document)
    move_slider(page, threshold)
    kinds = counts(document, threshold)
    if total(kinds, "t"):
        check_counts(page, kinds)
    else:
        assert shown_kinds(page)["m"] == total(kinds, "m")
    assert f"score ≥ {threshold:.2f}" in page.locator(".summary").inner_text()


def test_best_threshold_is_where_f1_is_highest(view: View, document: Document) -> None:
    page = view(document)
    page.locator(".under button").nth(1).click()
    settle(page)
    values = []
    for step in range(50):
        kinds = counts(document, step / 50)
        right, rest = total(kinds, "t"), total(kinds, "bcldm")
        values.append(2 * right / (2 * right + rest))
    assert fact(page, "F1") == pytest.approx(max(values), abs=5e-4)


def test_iou_selector(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_role("group", name="IoU threshold").get_by_text("0.75").click()
    check_counts(page, counts(document, 0.3, iou=1))


def test_evaluation_selector(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_label("evaluation", exact=True).select_option(label="iter 100")
    check_counts(page, counts(document, 0.3, evaluation=0))


def test_class_filter_with_two_classes(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_label(CLASSES[0]).check()
    page.get_by_label(CLASSES[2]).check()
    kinds = counts(document, 0.3, labels={0, 2})
    check_counts(page, kinds)
    there = [i for i, image in enumerate(document.images) if sum(kinds[i].values()) or {0, 2} & set(truth(image).l)]
    assert seen(page) == said(len(there))
    page.locator(".filters .chip").click()
    assert seen(page) == "30 images"


def truth(image: Any) -> Any:
    return image.truth["instances"]


@pytest.mark.parametrize("letter", ["m", "c", "d"])
def test_kind_filter_shows_the_images_that_have_it(view: View, document: Document, letter: str) -> None:
    page = view(document)
    page.locator(f".kind[data-key={letter}]").click()
    there = {i for i, each in enumerate(counts(document, 0.3)) if each[letter]}
    assert seen(page) == said(len(there))
    assert set(order(page)) <= there


def test_name_filter_and_the_order_of_names(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_label("image name contains").fill("0002")
    page.get_by_label("order of the images").select_option("name")
    assert order(page) == [i for i, image in enumerate(document.images) if "0002" in image.name]
    page.get_by_label("image name contains").fill("no such image")
    assert "No image fits" in page.locator(".nothing").inner_text()


def test_most_errors_first(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_label("order of the images").select_option("errors")
    errors = [total([each], "bcldm") for each in counts(document, 0.3)]
    there = [errors[i] for i in order(page)]
    assert there == sorted(errors, reverse=True)[: len(there)]


def found(document: Document, index: int, evaluation: int, threshold: float = 0.3) -> set[int]:
    predicted = (document.evaluations[evaluation].images[index] or {})["instances"]
    pairs = zip(predicted.g[0], predicted.e[0], predicted.s, strict=True)
    return {match for match, kind, score in pairs if kind == "t" and score >= threshold}


def test_comparison_with_the_previous_evaluation(view: View, document: Document) -> None:
    page = view(document)
    select = page.get_by_label("compare with")
    assert "previous: iter 100" in select.inner_text()
    select.select_option(label="previous: iter 100")
    now = [total([each], "bcldm") for each in counts(document, 0.3)]
    before = [total([each], "bcldm") for each in counts(document, 0.3, evaluation=0)]
    fixed, broken = (sum(sign * (a - b) > 0 for a, b in zip(now, before, strict=True)) for sign in (-1, 1))
    buttons = page.locator(".changes button")
    assert [re.sub(r"\D", "", text) for text in buttons.all_inner_texts()] == [str(fixed), str(broken)]
    gained = sum(len(found(document, i, 1) - found(document, i, 0)) for i in range(30))
    lost = sum(len(found(document, i, 0) - found(document, i, 1)) for i in range(30))
    assert page.locator(".changes .quiet").inner_text() == f"objects: {gained} found, {lost} lost"
    # Most broken first, then only what is fixed.
    assert page.get_by_label("order of the images").input_value() == "broken"
    there = [now[i] - before[i] for i in order(page)]
    assert there == sorted((a - b for a, b in zip(now, before, strict=True)), reverse=True)[: len(there)]
    buttons.first.click()
    assert seen(page) == said(fixed)
    assert all(now[i] < before[i] for i in order(page))
    badge = page.locator(".grid .item .badge").first.inner_text()
    index = int(page.locator(".grid .item").first.get_attribute("data-index") or -1)
    assert badge == f"▼ {before[index] - now[index]}"


def test_best_evaluation_is_suggested(view: View) -> None:
    document = make_document(3, 3, evaluations=3)
    document.evaluations[0].metrics = {"val/bbox/mAP": 0.9}
    text = view(document).get_by_label("compare with").inner_text()
    assert "best val/bbox/mAP: iter 100" in text
    assert "previous: iter 200" in text


def test_class_table_follows_the_threshold_and_keeps_the_given_ap(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_role("tab", name="Classes").click()
    for label in (-1, 0, 1, 2):
        row = next(each for each in document.evaluations[-1].classes["instances"] if each.label == label)
        cells = page.locator(f"tr[data-label='{label}'] td").all_inner_texts()
        assert cells[0] == f"{row.ap:.3f}"
        assert cells[5:8] == [str(row.true_positives), str(row.false_positives), str(row.missed)]
    move_slider(page, 0.6)
    kinds = counts(document, 0.6, labels={1})
    cells = page.locator("tr[data-label='1'] td").all_inner_texts()
    assert cells[5:8] == [str(total(kinds, letters)) for letters in ("t", "bcld", "m")]
    page.get_by_role("button", name="missed").last.click()
    rows = [int(text) for text in page.locator("tbody tr:not(.all) td:nth-child(9)").all_inner_texts()]
    assert rows == sorted(rows, reverse=True)
    page.locator("tr[data-label='1'] th button").click()
    assert "square" in page.locator(".filters").inner_text()
    assert page.get_by_role("tab", name="Images").get_attribute("aria-selected") == "true"


def test_confusion_matrix_adds_up_and_its_cells_filter(view: View, document: Document) -> None:
    page = view(document)
    page.get_by_role("tab", name="Confusion").click()
    cells = {}
    for button in page.locator(".confusion td button").all():
        place = (int(button.get_attribute("data-row") or -1), int(button.get_attribute("data-column") or -1))
        cells[place] = int(button.inner_text())
    kinds = counts(document, 0.3)
    assert sum(cells.get((i, i), 0) for i in range(3)) == total(kinds, "t")
    for label in range(3):  # every true object and every judged prediction stands in one cell
        mine = counts(document, 0.3, labels={label})
        assert sum(cells.get((label, column), 0) for column in range(4)) == total(mine, "tm")
        assert sum(cells.get((row, label), 0) for row in range(4)) == total(mine, "tbcld")
    confused = next(place for place in cells if place[0] != place[1] and 3 not in place)
    page.locator(f".confusion button[data-row='{confused[0]}'][data-column='{confused[1]}']").click()
    there = int(seen(page).split()[0])
    assert 0 < there <= cells[confused]
    for index in order(page):
        predicted = (document.evaluations[-1].images[index] or {})["instances"]
        hits = zip(predicted.e[0], predicted.g[0], predicted.l, predicted.s, strict=True)
        assert any(
            kind == "c"
            and score >= 0.3
            and label == confused[1]
            and truth(document.images[index]).l[match] == confused[0]
            for kind, match, label, score in hits
        )


def test_large_view_lists_the_objects(view: View, document: Document) -> None:
    page = view(document)
    index = order(page)[0]
    page.locator(".card").first.click()
    each = count(document, index, 0.3)
    assert page.locator("dialog h2.name").inner_text() == document.images[index].name
    for letter in LETTERS:
        rows = page.locator(f".object[data-kind={letter}]")
        assert rows.count() == each[letter], letter
    predicted = (document.evaluations[-1].images[index] or {})["instances"]
    scores = page.locator(".object[data-side=prediction] .number[title=score]").all_inner_texts()
    assert sorted(scores) == sorted(f"{score:.2f}" for score in predicted.s if score >= 0.3)
    assert page.locator("figcaption").all_inner_texts() == ["ground truth", "prediction · iter 200"]
    page.locator("dialog").get_by_label("score threshold").fill("0.9")
    settle(page)
    assert page.locator(".object[data-kind=m]").count() == count(document, index, 0.9)["m"]
    assert page.locator("dialog h2.name").inner_text() == document.images[index].name


def test_large_view_draws_picture_and_objects_and_zooms(view: View, document: Document) -> None:
    page = view(document)
    page.locator(".card").first.click()
    page.wait_for_timeout(300)
    pixels = "(canvas) => canvas.toDataURL().length"
    pane = page.locator("canvas.pane").first
    whole = pane.evaluate(pixels)
    page.locator(".object").first.hover()
    settle(page)
    lit = pane.evaluate(pixels)
    page.locator(".object").first.click()
    settle(page)
    zoomed = pane.evaluate(pixels)
    assert len({whole, lit, zoomed}) == 3
    assert page.locator(".object.lit").count() == 1
    page.keyboard.press("s")
    settle(page)
    assert page.locator("canvas.pane").count() == 1


def test_keyboard_alone_does_it_all(view: View, document: Document) -> None:
    page = view(document)
    first, second = order(page)[:2]
    page.keyboard.press("ArrowRight")  # the focus comes to the first image
    page.keyboard.press("ArrowRight")
    expect(page.locator(f".item[data-index='{second}'] .card")).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    name = page.locator("dialog h2.name")
    assert name.inner_text() == document.images[first].name
    page.keyboard.press("ArrowRight")
    assert name.inner_text() == document.images[second].name
    page.keyboard.press("ArrowLeft")
    assert name.inner_text() == document.images[first].name
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(page.locator(f".item[data-index='{second}'] .card")).to_be_focused()
    page.keyboard.press("+")
    expect(page.locator(".summary")).to_contain_text("score ≥ 0.35")
    page.keyboard.press("-")
    page.keyboard.press("-")
    expect(page.locator(".summary")).to_contain_text("score ≥ 0.25")
    for key, name_ in (("t", "truth"), ("p", "predictions"), ("m", "masks"), ("l", "labels")):
        button = page.locator(f".toolbar .toggle[data-key={name_}]")
        assert button.get_attribute("aria-pressed") == "true"
        page.keyboard.press(key)
        assert button.get_attribute("aria-pressed") == "false"
    page.keyboard.press("?")
    assert page.locator("dialog.help[open]").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    expect(page.locator(".item[aria-posinset='30'] .card")).to_be_focused()


def test_toggles_change_what_is_drawn(view: View, document: Document) -> None:
    page = view(document)
    canvas = page.locator(".card canvas").first
    pixels = "(canvas) => canvas.toDataURL()"
    drawn = [canvas.evaluate(pixels)]
    for key in "lmtp":
        page.keyboard.press(key)
        drawn.append(canvas.evaluate(pixels))
    assert len(set(drawn)) == 5
    empty = "(canvas) => !canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    assert canvas.evaluate(empty)


def test_settings_stand_in_the_address(view: View, document: Document) -> None:
    page = view(document)
    move_slider(page, 0.55)
    page.locator(".kind[data-key=m]").click()
    page.wait_for_timeout(600)
    address = page.evaluate("location.hash")
    again = view(document, address=address)
    assert seen(again) == seen(page)
    assert "score ≥ 0.55" in again.locator(".summary").inner_text()


def test_addresses_that_make_no_sense_are_ignored(view: View, document: Document) -> None:
    address = "#evaluation=x&threshold=NaN&iou=99&classes=-1.zz.__proto__&kinds=constructor"
    address += "&sort=x&view=%00&cell=1e99&image=-5"
    assert seen(view(document, address=address)) == "30 images"


def test_without_truth(view: View) -> None:
    document = make_document(5, 4, truth=False)
    page = view(document)
    shown = sum(score >= 0.3 for image in document.evaluations[-1].images for score in (image or {})["instances"].s)
    assert page.locator(".summary .tally").inner_text() == f"{shown} predictions; no ground truth"
    assert shown_kinds(page) == {"u": shown}
    assert page.get_by_role("tab", name="Confusion").count() == 0
    page.locator(".card").first.click()
    assert page.locator("figcaption").all_inner_texts() == ["prediction · iter 200"]


def test_without_images_and_without_evaluations(view: View) -> None:
    document = make_document(0, 0)
    assert "There are no images" in view(document).locator(".nothing").inner_text()
    document = make_document(2, 2, evaluations=0)
    assert view(document).locator(".grid .item").count() == 2


def test_image_that_was_not_evaluated_and_image_without_picture(view: View) -> None:
    document = make_document(4, 3)
    document.evaluations[-1].images[2] = None
    document.images[1].src, document.images[1].why = "", "the file is gone"
    page = view(document)
    assert page.locator("[data-index='2'] .counts").inner_text() == "not evaluated"
    assert order(page)[-1] == 2
    assert page.locator("[data-index='1'] .why").inner_text() == "the file is gone"


def test_tasks(view: View) -> None:
    document = make_document(6, 4, tasks=("instances", "panoptic", "semantic"))
    page = view(document)
    page.get_by_role("group", name="task").get_by_text("semantic").click()
    predictions = [(image or {})["semantic"] for image in document.evaluations[-1].images]
    assert shown_kinds(page)["t"] == sum(each.e[0].count("t") for each in predictions)
    assert page.locator(".toolbar .toggle[data-key=byClass]").get_attribute("aria-pressed") == "true"


def test_keypoints_are_drawn(view: View) -> None:
    page = view(make_document(2, 3, keypoints=True))
    canvas = page.locator(".card canvas").first
    before = canvas.evaluate("(canvas) => canvas.toDataURL()")
    page.locator(".toolbar .toggle[data-key=keypoints]").click()
    assert canvas.evaluate("(canvas) => canvas.toDataURL()") != before


def test_many_classes_are_searched(view: View) -> None:
    names = [f"class {number:04d}" for number in range(1203)]
    page = view(make_document(10, 6, classes=names, pictures=False))
    assert page.locator("label.class").count() == 150
    page.get_by_label("search classes").fill("1199")
    assert page.locator("label.class .name").all_inner_texts() == ["class 1199"]
    page.get_by_label("class 1199").check()
    assert "class 1199" in page.locator(".filters").inner_text()
    page.get_by_role("tab", name="Confusion").click()
    page.get_by_role("tab", name="Classes").click()
    assert page.locator(".numbers tbody tr").count() == 301


def test_narrow_window_has_the_panel_behind_a_button(view: View, document: Document) -> None:
    page = view(document, width=400, height=800)
    assert not page.locator(".panel").is_visible()
    page.get_by_role("button", name="Filters").click()
    page.get_by_label(CLASSES[0]).check()
    check_counts(page, counts(document, 0.3, labels={0}))
    page.keyboard.press("Escape")
    page.locator(".card").first.click()
    assert page.locator("dialog[open]").bounding_box() == {"x": 0, "y": 0, "width": 400, "height": 800}
    assert page.evaluate("document.documentElement.scrollWidth") == 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(view: View, document: Document, scheme: str) -> None:
    page = view(document)
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    ground = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).every(part => part < 100)"
    assert page.evaluate(ground) is (scheme == "dark")
    page.get_by_label("light or dark").click()
    assert page.evaluate(ground) is (scheme == "light")
