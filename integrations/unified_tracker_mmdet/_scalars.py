"""The row that MMEngine's own log has for an iteration, without the cost of formatting it."""

from __future__ import annotations

import functools
import re
from numbers import Real
from typing import Any, Final

import torch
from mmengine.runner import Runner

AXES: Final = frozenset({"epoch", "iter"})
TIMES: Final = ("time", "data_time")
SMOOTHED: Final = re.compile(r"loss|time|data_time|grad_norm")  # of MMEngine before it could be configured


class TrainingScalars:
    """Reads training scalars as `LoggerHook` writes them: same names, same smoothing windows, same memory peak.

    Where `LoggerHook` has just made the row of the iteration, that row is taken: it resets the peak of the GPU memory
    when it reads it, so nobody else can measure the same. In between, the buffers of the message hub are read by the
    rules of the `LogProcessor`, and memory is the peak since the last row of `LoggerHook`.
    Neither waits for a device: the buffers hold Python numbers already.

    Attributes:
        evaluation_times: "val/time" and "val/data_time", seconds an iteration, of the last evaluation. `LoggerHook`
            calls them as it calls those of the training, at the same steps.
    """

    def __init__(self, runner: Runner) -> None:
        """Listen to the runner's log processor."""
        self._runner = runner
        self._row: dict[str, Any] = {}
        self._row_of_iteration = -1
        make_row = runner.log_processor.get_log_after_iter

        @functools.wraps(make_row)
        def observed(runner: Runner, batch_idx: int, mode: str) -> tuple[dict[str, Any], str]:
            row, text = make_row(runner, batch_idx, mode)
            if mode == "train":
                self._row, self._row_of_iteration = dict(row), runner.iter
            return row, text

        runner.log_processor.get_log_after_iter = observed
        self.evaluation_times: dict[str, float] = {}
        make_end = runner.log_processor.get_log_after_epoch

        @functools.wraps(make_end)
        def observed_end(runner: Runner, batch_idx: int, mode: str, *args: Any, **kwargs: Any) -> Any:
            row, text = make_end(runner, batch_idx, mode, *args, **kwargs)
            if mode == "val":
                self.evaluation_times = {
                    f"val/{name}": float(value)
                    for name in TIMES
                    if isinstance(value := row.get(name, row.get(f"val/{name}")), Real)
                }
            return row, text

        runner.log_processor.get_log_after_epoch = observed_end

    def read(self, batch_idx: int) -> dict[str, Any]:
        """The row of the iteration that has just ended; call it after all other hooks.

        Args:
            batch_idx: As MMEngine gives it to `after_train_iter`.
        """
        row = self._row if self._row_of_iteration == self._runner.iter else self._collect(batch_idx)
        return {
            name: float(value) if isinstance(value, Real) else value for name, value in row.items() if name not in AXES
        }

    def _collect(self, batch_idx: int) -> dict[str, Any]:
        processor = self._runner.log_processor
        prefix = "train/" if processor.log_with_hierarchy else ""
        buffers = {
            name if prefix else name.removeprefix("train/"): buffer
            for name, buffer in self._runner.message_hub.log_scalars.items()
            if name.startswith("train")
        }
        smoothed, window = getattr(processor, "mean_pattern", SMOOTHED), processor.window_size
        row = {
            name: buffer.mean(window) if smoothed.search(name) else buffer.current() for name, buffer in buffers.items()
        }
        for rule in processor.custom_cfg:
            buffer = buffers.get(prefix + rule["data_src"])
            if buffer is not None:
                row[prefix + rule.get("log_name", rule["data_src"])] = self._statistic(buffer, rule, batch_idx)
        if torch.cuda.is_available():
            device = getattr(self._runner.model, "output_device", None)
            row["memory"] = torch.cuda.max_memory_allocated(device) >> 20
        return row

    def _statistic(self, buffer: Any, rule: dict[str, Any], batch_idx: int) -> Any:
        """One entry of the processor's `custom_cfg`."""
        arguments = {key: value for key, value in rule.items() if key not in {"data_src", "log_name"}}
        windows = {"epoch": batch_idx + 1, "global": self._runner.iter + 1}
        if arguments.get("window_size") in windows:
            arguments["window_size"] = windows[arguments["window_size"]]
        return buffer.statistics(**arguments)
