"""What the user reads in the terminal: one line, on standard error, with the library's name in front."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line to standard error; a closed or broken terminal is no reason to fail."""
    try:
        sys.stderr.write(f"unified-tracker: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return
