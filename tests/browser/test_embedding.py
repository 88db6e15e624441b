"""The page where nothing is allowed but scripts: a sandboxed frame, and MLflow's artifact preview, which is one."""

from __future__ import annotations

from pathlib import Path

import mlflow
from playwright.sync_api import Browser, Frame, Page, expect

from tests.browser.conftest import Watched
from tests.browser.documents import count, make_document
from unified_tracker.predictions._document import Document
from unified_tracker.predictions._page import write_page

THRESHOLD = 0.7


def drive(frame: Frame, document: Document) -> None:
    """Slider, filter, keyboard and the large view, in a frame."""
    expect(frame.locator("#app")).to_have_attribute("aria-busy", "false")
    expect(frame.locator(".grid .item").first).to_be_visible()
    assert (
        frame.locator(".grid .item img").first.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
    )
    slider = frame.locator("input[type=range]:visible").first
    slider.fill(str(THRESHOLD))
    kinds = [count(document, index, THRESHOLD) for index in range(len(document.images))]
    right, wrong, missed = (sum(each[letter] for each in kinds for letter in letters) for letters in ("t", "bcld", "m"))
    expect(frame.locator(".summary .tally")).to_have_text(f"{right} TP · {wrong} FP · {missed} missed")
    frame.locator(".card").first.click()
    expect(frame.locator("dialog[open] canvas.pane")).to_have_count(2)
    name = frame.locator("dialog h2.name").inner_text()
    frame.page.keyboard.press("ArrowRight")
    expect(frame.locator("dialog h2.name")).not_to_have_text(name)
    frame.page.keyboard.press("Escape")
    expect(frame.locator("dialog[open]")).to_have_count(0)


EMBED = """async (text) => {
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-scripts";
  frame.width = "900";
  frame.height = "600";
  frame.src = URL.createObjectURL(new Blob([text], { type: "text/html" }));
  document.body.replaceChildren(frame);
  await new Promise((done) => (frame.onload = done));
}"""


def test_sandboxed_frame_with_a_blob(browser: Browser, tmp_path: Path) -> None:
    document = make_document(12, 5, masks=True)
    write_page(document, tmp_path / "page.html")
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    watched = Watched(page)
    page.evaluate(EMBED, (tmp_path / "page.html").read_text())
    frame = page.frames[-1]
    assert (
        frame.evaluate("() => { try { return Boolean(localStorage) } catch (error) { return error.name } }")
        == "SecurityError"
    )
    drive(frame, document)
    page.wait_for_timeout(500)  # what is written into the address later
    assert not watched.errors + watched.dialogs
    assert not [url for url in watched.requests if not url.startswith(("data:", "blob:"))]
    page.close()


def test_artifact_view_of_mlflow(browser: Browser, mlflow_server: str, tmp_path: Path) -> None:
    document = make_document(12, 5, masks=True)
    write_page(document, tmp_path / "page.html")
    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.create_experiment("page")
    run = client.create_run(experiment).info.run_id
    client.log_artifact(run, str(tmp_path / "page.html"), "predictions")
    client.set_terminated(run)
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    watched = Watched(page)
    address = f"{mlflow_server}/#/experiments/{experiment}/runs/{run}/artifacts/predictions/page.html"
    page.goto(address)
    frame = artifact_frame(page)
    drive(frame, document)
    assert not watched.dialogs
    page.close()


def artifact_frame(page: Page) -> Frame:
    element = page.wait_for_selector("iframe[sandbox]", timeout=60_000)
    assert element is not None
    assert element.get_attribute("sandbox") == "allow-scripts"
    frame = element.content_frame()
    assert frame is not None
    return frame
