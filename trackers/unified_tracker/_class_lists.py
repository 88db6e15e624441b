"""Lists of classes, of models, checkpoints and data sets, and whether they fit together."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class ClassList(msgspec.Struct, frozen=True):
    """Whose classes, and which.

    Attributes:
        owner: "the model", "the training set 'shapes'".
        names: In the order of labels; empty where only their number is known.
        count: How many.
    """

    owner: str
    names: tuple[str, ...] = ()
    count: int | None = None

    @property
    def size(self) -> int:
        """How many; 0 if nothing is known."""
        return len(self.names) if self.count is None else self.count


def difference(one: ClassList, other: ClassList) -> str | None:
    """A sentence about what is different; None if nothing is, or nobody knows."""
    if not one.size or not other.size or (one.names and one.names == other.names):
        return None
    if not one.names or not other.names:
        if one.size == other.size:
            return None
        return f"{one.owner} has {_described(one)}, {other.owner} has {_described(other)}"
    only_one, only_other = _without(one.names, other.names), _without(other.names, one.names)
    changed = (i for i, (a, b) in enumerate(zip(one.names, other.names, strict=False)) if a != b)
    if not only_one and not only_other and (place := next(changed, None)) is not None:
        return (
            f"{one.owner} and {other.owner} have the same classes in another order: label {place} is "
            f"{one.names[place]!r} in the one, {other.names[place]!r} in the other"
        )
    sides = ((one.owner, only_one), (other.owner, only_other))
    only = "; ".join(f"only {owner} has {_some(names)}" for owner, names in sides if names)
    found = f"the classes of {one.owner} ({one.size}) and of {other.owner} ({other.size}) differ"
    found += f": {only}" if only else ""
    return f"{found}; labels of the same number mean different things" if one.size == other.size else found


def _described(classes: ClassList) -> str:
    count = f"{classes.size} {'class' if classes.size == 1 else 'classes'}"
    return f"{count} ({_some(classes.names)})" if classes.names else count


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _some(names: Iterable[str], most: int = 10) -> str:
    words = [repr(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
