"""The training session: the one pipeline behind every framework adapter.

An adapter translates its framework's callbacks into these events and knows no backend; the session knows no framework.
Nothing in here waits: an event costs the calls to `Run` that it makes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar, cast

import msgspec

from unified_tracker._console import say
from unified_tracker._detector import Detector, config_digest
from unified_tracker._errors import ConfigurationError
from unified_tracker._journal import now_ms
from unified_tracker._mask import mask_source, unsalted
from unified_tracker._run import Run, reason_of, status_of
from unified_tracker._rundir import write_bytes
from unified_tracker._start import RunSettings
from unified_tracker.records import Input

if TYPE_CHECKING:
    from unified_tracker._class_lists import ClassList
    from unified_tracker.predictions import SampleEvaluation  # loads NumPy

__all__ = ["CheckpointFile", "Detector", "Evaluation", "RunSettings", "TrainingSession", "guarded"]

P = ParamSpec("P")
S = TypeVar("S")
LARGEST_FILE: Final = 256 << 20
EVALUATIONS_FILE: Final = "evaluation-results.json"
CLASSES_TAG: Final = "unified_tracker.warning.classes"
BEST_FILE: Final = "best.json"  # in the run directory
TEXTS: Final = frozenset({".log", ".txt", ".py", ".yaml", ".yml"})  # frameworks print the configuration into them
_said: set[str] = set()


def guarded(method: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """A callback of an adapter: whatever goes wrong in it is said once and never ends the training.

    A `ConfigurationError` passes: it is raised before training, on purpose.
    """

    @functools.wraps(method)
    def call(self: S, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 -- promise 3: tracking never ends a training
            key = f"{method.__qualname__}:{type(error).__name__}"
            if key not in _said:
                _said.add(key)
                say(f"{method.__qualname__} failed, training goes on: {type(error).__name__}: {error}")

    return cast("Callable[Concatenate[S, P], None]", call)


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
        step: Completed optimiser iterations.
        epoch: Completed epochs, or None where there are none.
        own: Metrics under the framework's own names and units.
        canonical: The same under the canonical names ("val/bbox/mAP", 0 to 1); not-applicable values left out.
        headline: The metrics by which a checkpoint can be best, most important first, under names for aliases:
            {"bbox.AP": 41.2, "bbox.mAP": 0.412} allows the aliases "best-bbox.AP" and "best-bbox.mAP".
        per_class: Task to rows of (category, AP from 0 to 1 or None).
    """

    step: int
    epoch: float | None
    own: Mapping[str, float]
    canonical: Mapping[str, float]
    headline: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, list[tuple[str, float | None]]] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint that the framework has written.

    Attributes:
        path: File or folder.
        step: Completed optimiser iterations at the time of saving.
        epoch: Completed epochs, or None.
        alias: "epoch_3" or "iter_300".
        best_only: The framework keeps this file as its best; it is used only if no regular file has the same step.
    """

    path: Path
    step: int
    epoch: float | None
    alias: str
    best_only: bool = False


class TrainingSession:
    """One training, from its first event to its last. Rank 0 only; adapters guard, the session does not."""

    def __init__(
        self,
        run: Run,
        *,
        log_checkpoint: bool = True,
        log_checkpoint_metadata: bool = True,
        best_metric: str | None = None,
        framework_names: bool = True,
        keep_last: int = 0,
        keep_every: int = 0,
    ) -> None:
        """Set what is recorded.

        Args:
            run: Where to.
            log_checkpoint: Record checkpoints.
            log_checkpoint_metadata: Bind the metrics of the same step to each.
            best_metric: The metric that decides the alias "best": a headline name, with "/" or "."; None takes the
                first headline metric of the first evaluation. Names with "loss" or "error" are better when smaller.
            framework_names: Record the framework's own names beside the canonical ones.
            keep_last, keep_every: As in `Run.log_checkpoint`: what the backend keeps of the checkpoints.
        """
        self.run = run
        self._log_checkpoint, self._with_metadata = log_checkpoint, log_checkpoint_metadata
        self._best_metric = best_metric.replace("/", ".") if best_metric else None
        self._framework_names = framework_names
        self._keep_last, self._keep_every = keep_last, keep_every
        self._pending: dict[int, CheckpointFile] = {}
        self._logged_steps: set[int] = set()
        self._evaluations: dict[tuple[str, int], Evaluation] = {}
        self._best: dict[str, float] = {}  # of the checkpoints
        self._best_evaluated: dict[str, float] = {}  # of the evaluations, which may come more often
        self._judged: tuple[int, list[str]] = (-1, [])
        self._detector: Detector | None = None
        self.checkpoint_metadata: dict[str, Any] = {}  # of every checkpoint, beside its own
        self._inputs: dict[tuple[str, str], Input] = {}
        self._class_warnings: list[str] = []
        run.unfinished_status = "FAILED"  # until the adapter says how the training ended

    def state(self) -> dict[str, Any]:
        """What travels in the framework's checkpoint, so that a resumed training goes on as the same run."""
        return {"run_id": self.run.id, **self._bests()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier process left: the best values so far.

        A checkpoint was written before the evaluation at its own step, so what it carries is one evaluation old; the
        run directory, where it is still there, knows better.
        """
        for source in (state, self._read_best()):
            self._best.update(source.get("best", {}))
            self._best_evaluated.update(source.get("best_evaluated", {}))
            self._best_metric = self._best_metric or source.get("best_metric")

    def training_started(
        self,
        config: Mapping[str, Any],
        effective: Mapping[str, Any],
        file: tuple[str, str] | None = None,
        detector: Detector | None = None,
    ) -> None:
        """Record the configuration.

        Args:
            config: The whole of it, nested.
            effective: The values that hold after defaults, scaling and launching: world size, seed, learning rate.
            file: Name and text of the configuration as a file of the framework; secrets in it are masked.
            detector: What checkpoints need to be used; it goes along with each. None where nobody can say.
        """
        self.run.log_params({**config, "effective": dict(effective)})
        text = ""
        if file is not None:
            name, text = file[0], mask_source(file[1])
            self.run._log_file(name, text.encode("utf-8", "replace"))
        self._detector = detector
        text = detector.text if detector is not None else unsalted(text)
        if framework := effective.get("framework"):
            self.checkpoint_metadata["framework"] = framework
        if text:
            self.checkpoint_metadata["config_digest"] = config_digest(text)

    def inputs_used(self, inputs: Iterable[Input]) -> None:
        """Record what the run is made from, or evaluates: data sets, weights, a checkpoint. Each role of each once.

        Blocking: one write each. The uploader hashes and describes what the records point to.
        """
        for entry in inputs:
            if (key := (entry.role, entry.reference)) not in self._inputs:
                self._inputs[key] = entry
                self.run._log_input(entry)

    def checkpoint_evaluated(self, metrics: Mapping[str, float], step: int) -> None:
        """Record what an evaluation found of the checkpoint that the run evaluates. Without one, nothing.

        Args:
            metrics: By the names under which they stand in the run; what is not finite is left out.
            step: Completed optimiser iterations of its weights.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for entry in self._inputs.values():
            if entry.role == "checkpoint" and finite:
                self.run._log_input(msgspec.structs.replace(entry, ts=now_ms(), metrics=finite, step=step))

    def classes_compared(self, one: ClassList, other: ClassList) -> None:
        """Warn, once, if two lists of classes do not fit together: on the terminal, and as a tag of the run."""
        from unified_tracker._class_lists import difference

        sentence = difference(one, other)
        if sentence is not None and sentence not in self._class_warnings:
            self._class_warnings.append(sentence)
            say(sentence)
            self.run.set_tags({CLASSES_TAG: "; ".join(self._class_warnings)})

    def step_ended(self, step: int, epoch: float | None, own: Mapping[str, Any], canonical: Mapping[str, Any]) -> None:
        """Record the scalars of a step; the adapter decides at which steps."""
        values = {**own, **canonical} if self._framework_names else dict(canonical)
        if epoch is not None:
            values["epoch"] = epoch
        self.run.log_metrics(values, step)

    def evaluation_ended(self, evaluation: Evaluation, *, split: str = "val") -> None:
        """Record an evaluation: scalars on the training's axis, AP per class as a table."""
        self.step_ended(evaluation.step, evaluation.epoch, evaluation.own, evaluation.canonical)
        for task, rows in evaluation.per_class.items():
            self.run.log_table(f"{split}/{task}/per_class", ["category", "AP"], rows, evaluation.step)
        self._evaluations[split, evaluation.step] = evaluation

    def checkpoint_begins(self, path: Path) -> None:
        """The framework is about to write a checkpoint, perhaps over one that has been recorded."""
        self.run._before_rewrite(path)

    def predictions_ready(self, evaluation: SampleEvaluation, step: int, epoch: float | None, alias: str) -> None:
        """Record what the model said about the sample in the evaluation that has just ended: after `evaluation_ended`.

        Args:
            evaluation: The predictions, with the metrics of the evaluation.
            step: Completed optimiser iterations.
            epoch: Completed epochs, or None.
            alias: "epoch_3" or "iter_300". "best" and "best-<metric>" stand beside it where a validation is the best so
                far. A test says nothing about that, and takes no alias from a validation: "test_epoch_3".

        Blocking: one write; the first time, and where nothing was packed before, encoding as `Run.log_predictions`.
        """
        aliases = [alias, *self._best_of(step)] if evaluation.split == "val" else [f"{evaluation.split}_{alias}"]
        self.run.log_predictions(evaluation, step, epoch, aliases)

    def checkpoint_saved(self, checkpoint: CheckpointFile) -> None:
        """Remember a checkpoint. It is recorded by `settle`, when nobody writes to the file any more."""
        if not self._log_checkpoint or checkpoint.step in self._logged_steps:
            return
        known = self._pending.get(checkpoint.step)
        if known is None or known.best_only:
            self._pending[checkpoint.step] = checkpoint

    @property
    def unsettled(self) -> bool:
        """True while checkpoints wait for `settle`."""
        return bool(self._pending)

    def settle(self, *, before_step: int | None = None) -> None:
        """Record the checkpoints that are complete: all, or those saved before a step."""
        for step in sorted(self._pending):
            if before_step is not None and step >= before_step:
                continue
            checkpoint = self._pending.pop(step)
            if not checkpoint.path.exists():
                say(f"checkpoint {checkpoint.path} was deleted before it had settled; it is not recorded")
                continue
            evaluation = self._evaluations.get(("val", step))
            metrics: dict[str, float] = {}
            if evaluation is not None and self._with_metadata:
                own = evaluation.own if self._framework_names else {}
                metrics = {**own, **evaluation.canonical}
            aliases = (checkpoint.alias, *self._best_aliases(evaluation, self._best))
            path, detector = checkpoint.path, self._detector
            companions = detector.companions(path) if detector is not None else {}
            metadata = dict(self.checkpoint_metadata)
            if "best" in aliases:
                metadata["best_metric"] = self._best_metric
            self.run.log_checkpoint(
                path,
                step,
                checkpoint.epoch,
                metrics,
                aliases,
                {**metadata, **self._data_metadata()},
                keep_last=self._keep_last,
                keep_every=self._keep_every,
                _companions=companions,
            )
            self._logged_steps.add(step)
            if aliases[1:]:
                self._write_best()

    def training_ended(
        self, error: BaseException | None, files: Iterable[Path] = (), *, keep_open: bool = False
    ) -> None:
        """Record what is left, the files that belong to the run, and how it ended.

        Args:
            error: What ended the training early; None if it ran to its end.
            files: Configuration, logs, results. What is larger than 256 MiB stays where it is, with one line.
            keep_open: Leave the run open for what a script still wants to record; it is finished at exit.
        """
        self.settle()
        names: set[str] = set()
        for path in dict.fromkeys(files):
            if path.is_file() and path.stat().st_size <= LARGEST_FILE:
                name = path.name if path.name not in names else f"{path.parent.name}/{path.name}"
                names.add(name)
                self.run._log_file(name, _masked(path) if path.suffix in TEXTS else path)
            elif path.is_file():
                say(f"{path} is larger than {LARGEST_FILE >> 20} MiB and is not recorded; run.log_artifact does it")
        if self._evaluations:
            self._log_evaluations()
        if keep_open and error is None:
            self.run.unfinished_status = "FINISHED"
        else:
            self.run.finish(status_of(error), reason_of(error))

    def _data_metadata(self) -> dict[str, Any]:
        """What is known of the data that every checkpoint of this training was made from."""
        from unified_tracker._origins import dataset_digest  # not for those who keep no checkpoints

        digests = [dataset_digest(entry) for (role, _), entry in self._inputs.items() if role == "train"]
        return {"dataset_digest": ",".join(digests)} if digests and all(digests) else {}

    def _best_aliases(self, evaluation: Evaluation | None, so_far: dict[str, float]) -> list[str]:
        """Aliases of what an evaluation makes the best; the best values so far are brought up to date."""
        if evaluation is None:
            return []
        aliases = []
        values = {name: value for name, value in evaluation.headline.items() if math.isfinite(value)}
        if self._best_metric is None and values:
            self._best_metric = next(iter(values))
        if self._best_metric is not None and self._best_metric not in values:
            values.update(_named(self._best_metric, evaluation))
        for name, value in values.items():
            smaller_is_better = "loss" in name.lower() or "error" in name.lower()
            best = so_far.get(name)
            if best is None or (value < best if smaller_is_better else value > best):
                so_far[name] = value
                aliases.append(f"best-{name}")
                if name == self._best_metric:
                    aliases.insert(0, "best")
        return aliases

    def _best_of(self, step: int) -> list[str]:
        """Aliases of a validation. Judged once: several data sets may have predictions of the same one."""
        if self._judged[0] != step:
            self._judged = step, self._best_aliases(self._evaluations.get(("val", step)), self._best_evaluated)
            if self._judged[1]:
                self._write_best()
        return self._judged[1]

    def _bests(self) -> dict[str, Any]:
        return {
            "best": dict(self._best),
            "best_evaluated": dict(self._best_evaluated),
            "best_metric": self._best_metric,
        }

    def _write_best(self) -> None:
        if self.run.dir is not None:
            write_bytes(self.run.dir / BEST_FILE, msgspec.json.encode(self._bests()))

    def _read_best(self) -> dict[str, Any]:
        if self.run.dir is None:
            return {}
        try:
            found = msgspec.json.decode((self.run.dir / BEST_FILE).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return {}
        return found if isinstance(found, dict) else {}

    def _log_evaluations(self) -> None:
        content = [
            {
                "split": split,
                "step": evaluation.step,
                "epoch": evaluation.epoch,
                "metrics": dict(evaluation.own),
                "canonical": dict(evaluation.canonical),
                "per_class": {task: dict(rows) for task, rows in evaluation.per_class.items()},
            }
            for (split, _), evaluation in sorted(self._evaluations.items(), key=lambda item: item[0])
        ]
        self.run._log_file(EVALUATIONS_FILE, msgspec.json.format(msgspec.json.encode(content), indent=2))


def _masked(path: Path) -> bytes:
    return mask_source(path.read_text(encoding="utf-8", errors="replace")).encode("utf-8", "replace")


def _named(metric: str, evaluation: Evaluation) -> dict[str, float]:
    """The value of a metric that the user named, with "." for "/", if the evaluation has it."""
    for source in (evaluation.own, evaluation.canonical):
        for name, value in source.items():
            if metric in {name.replace("/", "."), name.removeprefix("val/").replace("/", ".")}:
                return {metric: float(value)} if math.isfinite(value) else {}
    return {}
