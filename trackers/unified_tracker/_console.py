"""What the user reads in the terminal: one line, on standard error, with the library's name in front."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_quiet: Final[ContextVar[bool]] = ContextVar("quiet", default=False)


def say(text: str) -> None:
    """Write a line to standard error; a closed or broken terminal is no reason to fail."""
    if _quiet.get():
        return
    try:
        sys.stderr.write(f"unified-tracker: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return


@contextmanager
def quiet() -> Iterator[None]:
    """Say nothing in it: what is worth a line when a training starts is not when somebody only looks."""
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)
