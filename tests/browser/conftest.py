"""A browser, pages that are opened in it, and a real `mlflow server` whose user interface shows them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.mlflow_serving import mlflow_server
from unified_tracker.predictions._document import Document
from unified_tracker.predictions._page import write_page

# Playwright's own Chromium is not needed; the first of these that is installed does it.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_VARIABLE = "UNIFIED_TRACKER_BROWSER"
expect.set_options(timeout=30_000)  # the machine may be busy
HOW = f"no browser found: apt-get install chromium (or Google Chrome), or set {BROWSER_VARIABLE} to one"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window. Without one the tests fail: a page that nobody has opened is not tested."""
    path = os.environ.get(BROWSER_VARIABLE) or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(HOW)
    with sync_playwright() as playwright:
        # Containers run as root, where Chromium's own sandbox cannot start.
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


class Watched:
    """What went wrong in a browser page: errors of scripts, dialogs, requests that left the machine or the file."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def clean(self, address: str) -> bool:
        """Whether nothing happened but what must: the page itself and pictures inside it were loaded."""
        foreign = [
            url for url in self.requests if url.partition("#")[0] != address and not url.startswith("data:image/")
        ]
        assert not self.errors
        assert not self.dialogs
        assert not foreign
        return True


@pytest.fixture
def view(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a document as a page from the file system. At the end: no error, no dialog, no request."""
    opened: list[tuple[Watched, str]] = []

    def show(document: Document, *, width: int = 1300, height: int = 820, address: str = "") -> Page:
        target = tmp_path / f"page{len(opened)}.html"
        write_page(document, target)
        page = browser.new_page(viewport={"width": width, "height": height})
        opened.append((Watched(page), target.as_uri()))
        page.goto(target.as_uri() + address)
        page.wait_for_selector("#app[aria-busy=false]")
        return page

    yield show
    for watched, address in opened:
        try:
            assert watched.clean(address)
        finally:
            watched.page.close()


@pytest.fixture(scope="session", name="mlflow_server")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real `mlflow server`."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri
