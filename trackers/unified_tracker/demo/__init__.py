"""The demo: a small real training on generated data, in either framework. `unified-tracker demo` runs it."""

from __future__ import annotations

from unified_tracker.demo._terminal import run_demo

__all__ = ["run_demo"]
