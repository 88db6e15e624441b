"""The page: one HTML file that shows a document of predictions, and from which the document is read back.

The file needs nothing else: no network, no storage, no library. It works from the file system, and inside MLflow's
artifact preview, a sandboxed frame in which scripts run and that is all. Pictures stand beside the document, not in it:
the browser touches only those that are looked at.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import html
import math
import re
import zlib
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

from unified_tracker._errors import RecordError
from unified_tracker._rundir import write_bytes
from unified_tracker.predictions._document import Document, ShownImage, ShownObjects

# What runs in the page, in this order; one scope.
SCRIPTS: Final = ("model", "mask", "canvas", "widgets", "panel", "grid", "tables", "detail", "page")
# What a browser is asked to load. Anything else that stands in a document as a source stays text.
_PICTURE: Final = re.compile(r"data:image/(?:webp|png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
_DATA: Final = re.compile(rb'<script type="application/octet-stream" id="document">([A-Za-z0-9+/=]+)</script>')
_SOURCES: Final = re.compile(rb'<script type="text/plain" id="picture-(\d+)">([A-Za-z0-9+/=:;,]+)</script>')
_MOST_BYTES: Final = 2 * 2**30  # of a document: a small file may claim to be a large one


def write_page(document: Document, target: Path) -> None:
    """Write the page, whole or not at all. The same document gives the same bytes.

    Numbers that are none stand as 0 (coordinates, scores) or are left out (metrics): JSON has no word for them.

    Args:
        document: What the page shows.
        target: The file; its folder exists.
    """
    write_bytes(target, page_bytes(document))


def page_bytes(document: Document) -> bytes:
    """The page, as `write_page` writes it."""
    bare, pictures = _without_pictures(document)
    shown = [
        b'<script type="text/plain" id="picture-%d">%s</script>\n' % (index, source.encode())
        for index, source in pictures.items()
    ]
    page, style, script = _parts()
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    filled = {
        "policy": html.escape(policy, quote=True).encode(),
        "title": html.escape(_readable(document.title), quote=True).encode(),
        "style": style.encode(),
        "script": script.encode(),
        "document": _packed(bare),
        "pictures": b"".join(shown),
    }
    return re.sub(rb"\{\{(\w+)\}\}", lambda found: filled[found[1].decode()], page.encode())


def read_page(source: Path) -> Document:
    """Read the document of a page back. Nothing in the file is run.

    Args:
        source: A file that `write_page` has written.

    Raises:
        RecordError: The file is no such page, or not whole.
        OSError: It cannot be read.
    """
    content = source.read_bytes()
    found = _DATA.search(content)
    if found is None:
        raise RecordError(f"{source.name} is not a page of predictions")
    try:
        unpacker = zlib.decompressobj(wbits=31)
        packed = unpacker.decompress(base64.b64decode(found[1], validate=True), _MOST_BYTES)
        if not unpacker.eof:
            raise RecordError(f"the document in {source.name} is not whole, or larger than {_MOST_BYTES} bytes")
        document = msgspec.json.decode(packed, type=Document)
    except (binascii.Error, zlib.error, msgspec.MsgspecError) as error:
        raise RecordError(f"the document in {source.name} cannot be read: {error}") from error
    for picture in _SOURCES.finditer(content):
        if int(picture[1]) < len(document.images):
            document.images[int(picture[1])].src = picture[2].decode()
    return document


def size_without_pictures(document: Document) -> int:
    """Bytes of the page if no image had a picture."""
    bare, _ = _without_pictures(document)
    return len(page_bytes(bare))


@functools.cache
def _parts() -> tuple[str, str, str]:
    """The page, its style and its script, as they are in the package."""
    folder = resources.files(__package__) / "page"
    page = (folder / "page.html").read_text(encoding="utf-8")
    style = "\n" + (folder / "page.css").read_text(encoding="utf-8")
    scripts = "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    return page, style, f'\n"use strict";\n(() => {{\n{scripts}\n}})();\n'


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _without_pictures(document: Document) -> tuple[Document, dict[int, str]]:
    """The document without the pictures that stand beside it in the page, and those, by the number of their image."""
    pictures = {i: image.src for i, image in enumerate(document.images) if _PICTURE.fullmatch(image.src)}
    bare = [
        msgspec.structs.replace(image, src="") if i in pictures else image for i, image in enumerate(document.images)
    ]
    return msgspec.structs.replace(document, images=bare), pictures


def _packed(document: Document) -> bytes:
    document = _finite(document)
    try:
        content = msgspec.json.encode(document)
    except UnicodeEncodeError:  # a file name that is no Unicode
        content = msgspec.json.encode(_readable(msgspec.to_builtins(document)))
    packer = zlib.compressobj(6, wbits=31)
    return base64.b64encode(packer.compress(content) + packer.flush())


def _readable(value: Any) -> Any:
    """The same with replacement characters where a string is no Unicode."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_readable(each) for each in value]
    return value


def _finite(document: Document) -> Document:
    """The same with numbers only where numbers belong."""
    evaluations = [
        msgspec.structs.replace(
            each,
            metrics={name: value for name, value in each.metrics.items() if math.isfinite(value)},
            images=[shown and {task: _finite_objects(some) for task, some in shown.items()} for shown in each.images],
        )
        for each in document.evaluations
    ]
    images = [_finite_image(image) for image in document.images]
    return msgspec.structs.replace(document, evaluations=evaluations, images=images)


def _finite_image(image: ShownImage) -> ShownImage:
    truth = image.truth and {task: _finite_objects(some) for task, some in image.truth.items()}
    return msgspec.structs.replace(image, truth=truth)


def _finite_objects(objects: ShownObjects) -> ShownObjects:
    if all(math.isfinite(sum(each)) for each in (objects.b, objects.s, objects.o, *objects.k)):
        return objects
    return msgspec.structs.replace(
        objects,
        b=_numbers(objects.b),
        s=_numbers(objects.s),
        o=_numbers(objects.o),
        k=[_numbers(each) for each in objects.k],
    )


def _numbers(values: list[float]) -> list[float]:
    return [value if math.isfinite(value) else 0.0 for value in values]
