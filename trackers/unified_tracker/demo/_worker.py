"""The process in which the demo trains: `python -m unified_tracker.demo._worker PLAN FD`, started by `run_demo`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from unified_tracker.demo._plan import Plan, Progress, Reporter

TRAININGS: Final = {"detectron2": "unified_tracker.demo._detectron2", "mmdetection": "unified_tracker.demo._mmdet"}


def main(arguments: Sequence[str]) -> None:
    """Train as planned.

    Args:
        arguments: The plan as JSON; the descriptor of the pipe to the terminal.
    """
    plan = msgspec.json.decode(arguments[0], type=Plan)
    reporter = Reporter(int(arguments[1]))
    reporter.say(Progress("loading"))
    importlib.import_module(TRAININGS[plan.framework]).train(plan, reporter)


if __name__ == "__main__":
    main(sys.argv[1:])
