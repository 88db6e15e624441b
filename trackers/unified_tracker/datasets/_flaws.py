"""Flaws: what is broken in a data set as it was given, counted by kind, with the first examples of each."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from unified_tracker._errors import TrackerError

EXAMPLES: Final = 5
LONGEST: Final = 160  # characters of an example

FlawKind = Literal[
    "malformed entry",
    "duplicate category id",
    "duplicate image id",
    "duplicate file name",
    "unsafe file name",
    "missing image",
    "unreadable image",
    "size differs",
    "duplicate annotation id",
    "unknown image",
    "unknown category",
    "degenerate box",
    "not a number",
]


class Flaw(msgspec.Struct, frozen=True):
    """One kind of flaw.

    Attributes:
        kind: Which, as `FlawKind` has it.
        count: How many images, annotations or categories have it, and were left out for it.
        examples: The first of them, in words.
    """

    kind: str
    count: int
    examples: list[str]


class Flaws:
    """Collects flaws; what has one is left out of the data set by who reports it."""

    def __init__(self) -> None:
        self._counts: dict[FlawKind, int] = {}
        self._examples: dict[FlawKind, list[str]] = {}

    def add(self, kind: FlawKind, example: str) -> None:
        """Count one."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        known = self._examples.setdefault(kind, [])
        if len(known) < EXAMPLES:
            clean = example.encode("utf-8", "backslashreplace").decode()
            known.append(clean if len(clean) <= LONGEST else f"{clean[: LONGEST - 3]}...")

    def listed(self) -> list[Flaw]:
        """All kinds that there are, in the order in which they matter."""
        return [Flaw(kind, self._counts[kind], self._examples[kind]) for kind in get_args(FlawKind) if self._has(kind)]

    def _has(self, kind: FlawKind) -> bool:
        return kind in self._counts


class BrokenDatasetError(TrackerError):
    """A data set has flaws, and strictness was asked for. Nothing was recorded.

    Attributes:
        flaws: All of them.
    """

    def __init__(self, flaws: list[Flaw]) -> None:
        super().__init__(flaws)
        self.flaws = flaws

    def __str__(self) -> str:
        return "the data set is broken: " + ", ".join(f"{flaw.kind} ({flaw.count})" for flaw in self.flaws)
