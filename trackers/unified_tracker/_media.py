"""Media: pictures, tables and figures as the bytes that are staged, for the training thread."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from unified_tracker._errors import RecordError
from unified_tracker._mask import mask
from unified_tracker._values import as_text, plain


def image_content(name: str, image: Any) -> bytes:
    """A picture as `.npy`: uint8, (height, width) or (height, width, 1, 3 or 4).

    Raises:
        RecordError: It is none.
    """
    import numpy as np  # 0.1 s; most runs log no picture

    array = np.asarray(image)
    if array.dtype != np.uint8 and np.issubdtype(array.dtype, np.floating):
        array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {1, 3, 4}):
        raise RecordError(
            f"image {name!r}: shape (height, width[, 1, 3 or 4]) and dtype uint8 or float are expected, "
            f"not {array.shape} {array.dtype}"
        )
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def table_content(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table as JSON: columns, data.

    Raises:
        RecordError: A row has another length than the header.
    """
    body = [[mask(plain(value)) for value in row] for row in rows]
    for index, row in enumerate(body):
        if len(row) != len(columns):
            raise RecordError(f"table {name!r}: row {index} has {len(row)} values for {len(columns)} columns")
    return msgspec.json.encode({"columns": [as_text(column) for column in columns], "data": body})


def figure_content(name: str, figure: Any) -> tuple[str, bytes]:
    """Suffix and content of a matplotlib figure (PNG) or a plotly figure (HTML).

    Raises:
        RecordError: It is neither.
    """
    if hasattr(figure, "savefig"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight")
        return "png", buffer.getvalue()
    if hasattr(figure, "to_html"):
        return "html", figure.to_html(include_plotlyjs=True).encode()
    raise RecordError(f"figure {name!r}: a matplotlib or plotly figure is expected, not {type(figure)}")
