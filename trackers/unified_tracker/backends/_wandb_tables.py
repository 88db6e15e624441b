"""W&B's tables as they lie in an artifact: JSON, with images as cells that name files, boxes and masks.

Written here and not by `wandb.Table`: that one opens, decodes and copies every picture, writes each list of boxes into
a file of its own, copies what it is given into a staging folder, and orders its types by Python's hash of strings, so
that the same table is another one in the next process. A test compares the two, value by value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

SUFFIX: Final = ".table.json"
CLASSES_SUFFIX: Final = ".classes.json"
EXACT: Final = 1 << 53  # whole numbers up to here are the same in a browser

Kind = Literal["string", "number", "image-file"]


@dataclass
class ImageColumn:
    """What the layers of one column of images have in common: W&B keeps the names of classes with the column.

    Attributes:
        boxes, masks: Name of the layer to class id, or value of a mask's pixel, to name.
        scores: Names of the numbers that boxes can be filtered by.
    """

    boxes: dict[str, dict[int, str]] = field(default_factory=dict)
    masks: dict[str, dict[int, str]] = field(default_factory=dict)
    scores: set[str] = field(default_factory=set)

    def type(self) -> dict[str, Any]:
        """The column's type as W&B has it."""
        both = {**_merged(self.masks), **_merged(self.boxes)}
        return {
            "wb_type": "image-file",
            "params": {
                "box_layers": _constant({layer: sorted(names) for layer, names in sorted(self.boxes.items())}),
                "box_score_keys": _constant(sorted(self.scores), is_set=True),
                "mask_layers": _constant({layer: sorted(names) for layer, names in sorted(self.masks.items())}),
                "box_class_maps": _constant(_texts(self.boxes)),
                "mask_class_maps": _constant(_texts(self.masks)),
                "class_map": _constant({str(number): name for number, name in sorted(both.items())}),
            },
        }


@dataclass
class Table:
    """A table in the making: its columns with their types, and its rows.

    Attributes:
        images: What the pictures of a column have in common, by the column's name; or its type, ready made.
    """

    columns: dict[str, Kind]
    images: dict[str, ImageColumn | dict[str, Any]] = field(default_factory=dict)
    rows: list[list[Any]] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; a column that is not named stays empty."""
        self.rows.append([_cell(row.get(column), kind) for column, kind in self.columns.items()])

    def encode(self) -> bytes:
        """The file's content; the same for the same table, in every process."""
        types: dict[str, Any] = {}
        for column, kind in self.columns.items():
            own: Any = self.images[column] if kind == "image-file" else {"wb_type": kind}
            own = own.type() if isinstance(own, ImageColumn) else own
            types[column] = {"wb_type": "union", "params": {"allowed_types": [own, {"wb_type": "none"}]}}
        return msgspec.json.encode(
            {
                "_type": "table",
                "column_types": {"wb_type": "typedDict", "params": {"type_map": types}},
                "columns": list(self.columns),
                "data": self.rows,
                "ncols": len(self.columns),
                "nrows": len(self.rows),
                "log_mode": "IMMUTABLE",
            }
        )

    def plain(self) -> list[list[Any]]:
        """The rows without the pictures, as W&B's client writes them beside a run."""
        return [["Image" if isinstance(value, dict) else value for value in row] for row in self.rows]


def classes_file(names: Mapping[int, str]) -> bytes:
    """The file in which every image of a table has its classes, for servers that do not look at the columns."""
    return msgspec.json.encode(
        {"_type": "classes", "class_set": [{"id": number, "name": name} for number, name in names.items()]}
    )


def text(value: object) -> str:
    """A text as JSON can hold it: without lone surrogates, which file names may have."""
    return str(value).encode("utf-8", "replace").decode()


def identifiers(ids: Sequence[int | str]) -> tuple[Kind, list[Any]]:
    """Image ids as one column: numbers if all are, and a browser reads each of them exactly."""
    if all(isinstance(value, int) and abs(value) < EXACT for value in ids):
        return "number", list(ids)
    return "string", [text(value) for value in ids]


def _cell(value: Any, kind: Kind) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # W&B has no other word for it in a column of numbers
    return text(value) if kind == "string" and value is not None else value


def _constant(value: Any, *, is_set: bool = False) -> dict[str, Any]:
    return {"wb_type": "const", "params": {"val": value, "is_set": is_set}}


def _texts(layers: Mapping[str, Mapping[int, str]]) -> dict[str, dict[str, str]]:
    return {layer: {str(number): name for number, name in sorted(names.items())} for layer, names in layers.items()}


def _merged(layers: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
    return {number: name for names in layers.values() for number, name in names.items()}
