"""Values: turning what callers pass into what a record may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from unified_tracker.records import Number

INT64: Final = range(-(2**63), 2**63)
MAX_DEPTH: Final = 32


def number(value: object) -> Number | None:
    """A scalar as int64 or float64; None if it is no number.

    Takes Python and numpy numbers, booleans, `Decimal`, and arrays or tensors of one element (a CUDA tensor makes the
    caller wait for the device). Integers beyond int64 become floats.
    """
    if isinstance(value, (str, bytes, bytearray, Mapping)) or value is None:
        return None
    if isinstance(value, bool):
        return int(value)
    if type(value) is int:
        return value if value in INT64 else _finite(value)
    item = getattr(value, "item", None)
    if callable(item):
        try:
            value = item()
        except Exception:  # noqa: BLE001 -- any array type may raise anything for more than one element
            return None
        if type(value) is int or isinstance(value, bool):
            return number(value)
    try:
        return float(value)  # type: ignore[arg-type]  # what has no __float__ raises, and that is the test
    except Exception:  # noqa: BLE001 -- __float__ of a stranger's class may raise anything
        return None


def step_number(value: object) -> tuple[int | None, str | None]:
    """A step as int64, or None and what was given instead."""
    if value is None:
        return None, None
    given = None if isinstance(value, bool) else number(value)
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, int) and given in INT64:
        return given, None
    return None, repr(value)[:200]


def plain(value: object, depth: int = 0) -> Any:
    """Nested configuration as dicts with string keys, lists, strings, numbers, booleans and None.

    Anything else becomes its `repr` (functions and classes their dotted name); a structure deeper than 32 levels, so
    also one that contains itself, is cut there with "...".
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if type(value) is float or (type(value) is int and value in INT64):
        return value
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(inner, depth + 1) for inner in value]
    if isinstance(value, (set, frozenset)):
        return [plain(inner, depth + 1) for inner in sorted(value, key=repr)]
    if isinstance(value, int):
        return str(value)
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return f"{getattr(value, '__module__', '')}.{name}".lstrip(".")
    scalar = number(value)
    return scalar if scalar is not None else repr(value)[:10_000]


def flatten(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested dicts, and lists that contain dicts, as one dict with dotted keys; other lists stay values."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            pairs: Any = value.items()
        elif isinstance(value, list) and any(isinstance(inner, (Mapping, list)) for inner in value):
            pairs = enumerate(value)
        else:
            flat[prefix] = value
            return
        for key, inner in pairs:
            walk(f"{prefix}{separator}{key}" if prefix else str(key), inner)

    walk("", dict(values))
    flat.pop("", None)
    return flat


def _finite(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
