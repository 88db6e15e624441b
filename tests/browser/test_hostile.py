"""Labels, file names, titles and notes may contain anything; the page shows them, and that is all."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.documents import make_document
from unified_tracker.predictions._document import Document
from unified_tracker.predictions._page import read_page, write_page

CORPUS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "<!--<script>alert(1)</script>-->",
    "--><script>alert(1)</script>",
    "<!--<script>",
    "<script src=https://evil.example/x.js></script>",
    "<script src=//evil.example></script>",
    "<script type=module>import('https://evil.example/x.js')</script>",
    "<img src=x onerror=alert(1)>",
    "<img src=https://evil.example/x.png>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    "<img src=`x` onerror=alert(1)>",
    "<img/src/onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<body onload=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data=javascript:alert(1)></object>",
    "<embed src=javascript:alert(1)>",
    "<a href=javascript:alert(1) autofocus onfocus=alert(1)>x</a>",
    "<form action=javascript:alert(1)><button autofocus>x</button></form>",
    "<input autofocus onfocus=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<audio src=x onerror=alert(1)>",
    "<marquee onstart=alert(1)>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example/>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<style>@import 'https://evil.example/x.css';</style>",
    "<style>body{background:url(https://evil.example/x)}</style>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<textarea><script>alert(1)</script>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)',
    "` onclick=alert(1) `",
    "{{document}}{{constructor.constructor('alert(1)')()}}",
    "${alert(1)}",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#x3C;script&#x3E;alert(1)&#x3C;/script&#x3E;",
    "]]><script>alert(1)</script>",
    "\u2028alert(1)//",
    "\u202egpj.exe",
    "\x00<script>alert(1)</script>",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "../../../etc/passwd",
    "__proto__",
    "constructor",
    "hasOwnProperty",
    "😀 名前 ñ \udce9",
    "A" * 5000,
    "",
)


@pytest.fixture(scope="module")
def hostile() -> Document:
    """Every string as class, file name, reason, title, data set, run, label of an evaluation, metric and note."""
    count = len(CORPUS)
    document = make_document(count, 4, classes=CORPUS, evaluations=2, pictures=False, seed=5)
    document.title = document.dataset = "".join(CORPUS[:20])
    document.notes = list(CORPUS)
    document.keypoint_names = list(CORPUS[:5])
    for image, text in zip(document.images, CORPUS, strict=True):
        image.id = image.name = image.why = text
    for image, source in zip(document.images, HOSTILE_SOURCES, strict=False):
        image.src = source
    for number, evaluation in enumerate(document.evaluations):
        evaluation.id = evaluation.label = evaluation.run = "".join(CORPUS[number * 20 : number * 20 + 20])
        evaluation.split = CORPUS[number]
        evaluation.metrics = dict.fromkeys(CORPUS, 0.5)
    return document


HOSTILE_SOURCES = (
    "javascript:alert(1)",
    "https://evil.example/x.png",
    "//evil.example/x.png",
    "data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+",
    "data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==",
    "data:image/png;base64,AAAA</script><script>alert(1)</script>",
    'data:image/png;base64,AAAA" onerror="alert(1)',
    "blob:https://evil.example/1",
    "file:///etc/passwd",
)


class Elements(HTMLParser):
    """Elements and attributes of an HTML file."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_the_file_has_the_same_elements_whatever_it_shows(hostile: Document, tmp_path: Path) -> None:
    tame = make_document(len(CORPUS), 1, pictures=False)
    found = []
    for name, document in (("tame", tame), ("hostile", hostile)):
        write_page(document, tmp_path / name)
        found.append(Elements(tmp_path / name))
    assert found[0].tags == found[1].tags
    assert not [name for name, _ in found[1].attributes if name.startswith("on") or name in {"href", "src", "action"}]
    assert not [value for _, value in found[1].attributes if "javascript:" in (value or "")]


def test_html5lib_finds_no_more_either(hostile: Document, tmp_path: Path) -> None:
    import html5lib

    write_page(hostile, tmp_path / "page.html")
    tree = html5lib.parse((tmp_path / "page.html").read_text(), namespaceHTMLElements=False)
    assert [each.tag for each in tree.iter("script")] == ["script"] * 2
    assert not [each for each in tree.iter() if any(name.startswith("on") for name in each.attrib)]
    assert not list(tree.iter("img")) + list(tree.iter("iframe")) + list(tree.iter("a"))


def test_it_is_read_back(hostile: Document, tmp_path: Path) -> None:
    write_page(hostile, tmp_path / "page.html")
    read = read_page(tmp_path / "page.html")
    assert [image.src for image in read.images] == [image.src for image in hostile.images]
    assert read.classes == [text.replace("\udce9", "?") for text in CORPUS]


HARM = """() => {
  const every = [...document.querySelectorAll("*")];
  const foreign = "iframe, object, embed, link, base, a, form, svg, math, video, audio, style ~ style";
  const source = (each) => each.getAttribute("src") ?? each.getAttribute("href");
  return {
    scripts: document.querySelectorAll("script:not([type])").length,
    foreign: document.querySelectorAll(foreign).length,
    handlers: every.filter((each) => [...each.attributes].some(({ name }) => /^on/i.test(name))).length,
    sources: every.map(source).filter((each) => each && !/^data:image\\/(webp|png|jpeg);base64,/.test(each)),
  };
}"""


def test_nothing_of_it_runs_or_is_loaded(view: Callable[..., Page], hostile: Document) -> None:
    """Everywhere on the page. That there was no dialog, no request, no error is checked by `view`."""
    page = view(hostile)
    harmless = {"scripts": 1, "foreign": 0, "handlers": 0, "sources": []}
    assert page.evaluate(HARM) == harmless
    names = set()
    page.get_by_label("order of the images").select_option("order")
    for _ in range(80):
        names |= set(page.locator(".card .name").evaluate_all("all => all.map(each => each.textContent)"))
        page.keyboard.press("ArrowDown")
    assert names >= {text for text in CORPUS if "\udce9" not in text and "\x00" not in text}
    page.locator(".notes summary").click()
    page.locator(".notes summary").click()
    for tab in ("Classes", "Confusion", "Metrics"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate(HARM) == harmless
    page.get_by_role("tab", name="Images").click()
    page.get_by_label("compare with").select_option("0")
    page.locator("label.class input").first.check()
    page.locator("label.class input").nth(3).check()
    page.get_by_label("image name contains").fill("<")
    assert page.evaluate(HARM) == harmless
    page.get_by_label("image name contains").fill("")
    page.locator(".card").first.click()
    for _ in range(len(CORPUS)):
        page.keyboard.press("ArrowRight")
    assert page.evaluate(HARM) == harmless
    page.wait_for_timeout(500)  # what is written into the address later


def test_the_policy_refuses_what_a_hole_would_let_in(browser: Browser, tmp_path: Path) -> None:
    write_page(make_document(1, 1), tmp_path / "page.html")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("#app[aria-busy=false]")
    assert page.evaluate("() => { try { document.body.innerHTML = '<b>'; return false } catch { return true } }")
    policy = page.locator("meta[http-equiv]").get_attribute("content") or ""
    page.close()
    assert re.match(
        r"default-src 'none'; img-src data: blob:; style-src 'sha256-[^']+'; script-src 'sha256-[^']+';", policy
    )
