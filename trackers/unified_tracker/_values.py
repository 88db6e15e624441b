"""Values: turning what callers pass into what a record may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from unified_tracker.records import Number

INT64: Final = range(-(2**63), 2**63)
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 100_000


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
    return None, shown(value, 200)


def as_text(value: object) -> str:
    """Any object as a string that can be encoded; lone surrogates become "?", what cannot say itself its type."""
    if type(value) is str and value.isascii():
        return value
    try:
        return str(value).encode("utf-8", "replace").decode()
    except Exception:  # noqa: BLE001 -- __str__ of a stranger's class may raise anything
        return f"<{type(value).__name__}>"


def shown(value: object, limit: int) -> str:
    """The `repr` of any object, cut to a length."""
    try:
        return as_text(repr(value))[:limit]
    except Exception:  # noqa: BLE001 -- __repr__ of a stranger's class may raise anything
        return f"<{type(value).__name__}>"


def plain(value: object) -> Any:
    """Nested configuration as dicts with string keys, lists, strings, numbers, booleans and None.

    Anything else becomes its `repr` (functions and classes their dotted name). What contains itself is cut there with
    "...", and so is what is deeper than 32 levels or goes on beyond 100,000 values.
    """
    return _Plain().of(value)


class _Plain:
    """One conversion: what is being converted further up, and how many values there have been."""

    def __init__(self) -> None:
        self._above: set[int] = set()
        self._values = 0

    def of(self, value: object) -> Any:
        self._values += 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return as_text(value)
        if type(value) is float or (type(value) is int and value in INT64):
            return value
        if isinstance(value, (Mapping, Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
            return self._container(value)
        if isinstance(value, int):
            return str(int(value))
        name = getattr(value, "__qualname__", None)
        if isinstance(name, str):
            return as_text(f"{getattr(value, '__module__', '')}.{name}".lstrip("."))
        scalar = number(value)
        if scalar is not None:
            return scalar
        return shown(value, 10_000)

    def _container(self, value: Mapping[Any, Any] | Sequence[Any] | set[Any] | frozenset[Any]) -> Any:
        if id(value) in self._above or len(self._above) >= MAX_DEPTH:
            return "..."
        self._above.add(id(value))
        try:
            if isinstance(value, Mapping):
                found: dict[str, Any] = {}
                for key, inner in value.items():
                    name = as_text(key)
                    found[name if name not in found else f"{name} ({type(key).__name__})"] = self.of(inner)
                    if self._values > MAX_VALUES:
                        found["..."] = "..."
                        break
                return found
            items: list[Any] = []
            for inner in sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value:
                items.append(self.of(inner))
                if self._values > MAX_VALUES:
                    items.append("...")
                    break
            return items
        except Exception as error:  # noqa: BLE001 -- a stranger's container may raise anything; its neighbours stay
            return f"<{type(value).__name__}: {type(error).__name__}>"
        finally:
            self._above.discard(id(value))


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
