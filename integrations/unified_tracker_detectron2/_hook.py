"""The hook: Detectron2's callbacks in, events of the training session out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from unified_tracker import Run
from unified_tracker.predictions._collector import Ranks
from unified_tracker.training import CheckpointFile, Detector, Evaluation, RunSettings, TrainingSession, guarded
from unified_tracker_detectron2 import _facts, _inputs, _metrics, _portable
from unified_tracker_detectron2._config import (
    as_dict,
    as_yaml,
    evaluated_datasets,
    hook_arguments,
    initial_weights,
    training_datasets,
)
from unified_tracker_detectron2._facts import TrainingSizes
from unified_tracker_detectron2._predictions import EvaluationResults, EvaluationWatch, ModelListener

CONFIG_FILE = "model-config.yaml"
WINDOW = 20  # of Detectron2's own writers: the recorded values equal those of its metrics.json


class UnifiedTrackerHook(HookBase):
    """Records a Detectron2 training. Register it last, on any `TrainerBase`.

    Every process registers it; only rank 0 records, and it adds no collective call. Training metrics are read from the
    trainer's `EventStorage`, evaluation results too: whatever `EvalHook` or the user puts there is recorded once.
    Blocking: an iteration without a row costs an integer test; a row costs reading the storage and one write.
    After a resume with `resume_or_load(resume=True)` the same run goes on.
    """

    def __init__(
        self,
        cfg: CfgNode | None = None,
        *,
        tracker: str | Sequence[str] | None = None,
        project: str | None = None,
        name: str | None = None,
        description: str | None = None,
        tags: Mapping[str, Any] | None = None,
        config: Any = None,
        output_dir: str | Path | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        interval: int = 20,
        log_checkpoint: bool = True,
        log_checkpoint_metadata: bool = True,
        best_metric: str | None = None,
        keep_last: int = 0,
        keep_every: int = 0,
        num_eval_images: int = 100,
        score_thresh: float = 0.3,
        keep_run_open: bool = False,
        framework_names: bool = True,
        on_error: str | None = None,
    ) -> None:
        """Settle the configuration; opens nothing.

        Args:
            cfg: A configuration with `TRACKER` (`add_tracker_config`) or the blog's `MLFLOW`. What it sets goes before
                the arguments below, which serve LazyConfig and plain loops.
            tracker, project, name, description, tags, options, on_error: As in `unified_tracker.start_run`.
            config: Any mapping to record as parameters; default `cfg`, or `trainer.cfg` if there is one.
            output_dir: Where the run directory is made; default `cfg.OUTPUT_DIR`, else the checkpointer's folder.
            interval: Iterations between two rows of training metrics.
            log_checkpoint, log_checkpoint_metadata, best_metric, framework_names: As in `TrainingSession`.
            keep_last, keep_every: What the backend keeps of the checkpoints, as in `Run.log_checkpoint`.
            num_eval_images: Images of each test data set of which every evaluation records predictions, always the same
                ones; 0 for none, all if there are fewer.
            score_thresh: Where the score slider of their views starts. All predictions are recorded.
            keep_run_open: Leave `run` open after training; it is finished by `run.finish()` or at exit.

        Raises:
            ConfigurationError: On every process alike, before training.
        """
        given: dict[str, Any] = {
            "tracker": tracker,
            "project": project,
            "name": name,
            "description": description,
            "tags": tags,
            "config": config,
            "output_dir": output_dir,
            "options": options,
            "interval": interval,
            "log_checkpoint": log_checkpoint,
            "log_checkpoint_metadata": log_checkpoint_metadata,
            "best_metric": best_metric,
            "keep_last": keep_last,
            "keep_every": keep_every,
            "num_eval_images": num_eval_images,
            "score_thresh": score_thresh,
            "keep_run_open": keep_run_open,
        }
        if cfg is not None:
            given |= {key: value for key, value in hook_arguments(cfg).items() if value not in (None, {})}
        self._settings = RunSettings.resolve(
            given["tracker"],
            project=given["project"],
            name=given["name"],
            description=given["description"],
            tags=given["tags"],
            options=given["options"],
            dir=given["output_dir"],
            on_error=on_error,
        )
        self._cfg, self._config = cfg, given["config"]
        self._output_dir = Path(given["output_dir"]) if given["output_dir"] else None
        self._interval = max(1, int(given["interval"]))
        self._keep_run_open = bool(given["keep_run_open"])
        self._session_arguments = {
            "log_checkpoint": bool(given["log_checkpoint"]),
            "log_checkpoint_metadata": bool(given["log_checkpoint_metadata"]),
            "best_metric": given["best_metric"],
            "framework_names": framework_names,
            "keep_last": int(given["keep_last"]),
            "keep_every": int(given["keep_every"]),
        }
        self._num_eval_images = int(given["num_eval_images"])
        self._score_thresh = float(given["score_thresh"])
        self._watch: EvaluationWatch | None = None
        self._listener: ModelListener | None = None
        self._session: TrainingSession | None = None
        self._restored: dict[str, Any] = {}
        self._sent_iteration: dict[str, int] = {}
        self._evaluation_period = 0
        self._sizes = TrainingSizes()
        self._weights = ""  # that it began with; "" after a resume
        self._model: Any = None
        self._tests = 0
        self._trained: int | None = None

    @property
    def run(self) -> Run:
        """The run, once training has begun; on other ranks, and with tracking off, one that records nothing.

        Raises:
            RuntimeError: Training has not begun.
        """
        if self._session is None:
            if comm.is_main_process():
                raise RuntimeError("hook.run exists once training has begun")
            return self._settings.open(rank=comm.get_rank())
        return self._session.run

    def state_dict(self) -> dict[str, Any]:
        """What travels in a checkpoint: the identity of the run and the best values so far."""
        return self._session.state() if self._session is not None else dict(self._restored)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called by `resume_or_load(resume=True)`: the run goes on when training begins."""
        self._restored = dict(state)

    def before_train(self) -> None:
        """Open the run on rank 0. A wrong configuration is raised here; nothing else is."""
        if comm.is_main_process():
            self._begin()
        self._listen(getattr(self.trainer, "model", None), lambda: str(self._completed()))

    @guarded
    def after_step(self) -> None:
        """Record what is due."""
        if self._session is None:
            return
        step = self.trainer.iter + 1
        if step % self._interval == 0 or step >= self.trainer.max_iter:
            self._record(step)
        elif self._evaluation_period and step % self._evaluation_period == 0:
            self._record(step, evaluations_only=True)
        if self._session.unsettled and step < self.trainer.max_iter:
            self._session.settle()  # after the last step `EvalHook` still evaluates, in `after_train`

    @guarded
    def after_train(self) -> None:
        """Record what the other hooks did at the end, and how the training ended. Runs after a failure as well."""
        self._trained = self._completed()
        if self._listener is not None:
            self._listener.stop()
        if self._session is None:
            return
        ended_early = self.trainer.iter < self.trainer.max_iter
        error = sys.exc_info()[1] if ended_early else None
        self._record(self._trained)
        self._model = None  # hooks do not keep it alive
        self._session.training_ended(error, _facts.log_files(self._output_dir), keep_open=self._keep_run_open)

    # ---- evaluation without training ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluation(self, model: torch.nn.Module, step: int | None = None) -> Iterator[EvaluationResults]:
        """Record an evaluation that no trainer runs: `--eval-only`, or a test set after training.

        Example:
            with UnifiedTrackerHook(cfg).evaluation(model) as evaluation:
                evaluation.results = Trainer.test(cfg, model)

        Opens a run or goes on with the training's, records the results as "test/...", and predictions, and finishes the
        run unless it was open before. Every process enters it, rank 0 records. An exception marks the run FAILED and is
        raised again. Not while a training goes on.

        Args:
            model: What is evaluated. Without a training before, `cfg.MODEL.WEIGHTS` is recorded as the checkpoint that
                is evaluated, and the results go to it too.
            step: Completed iterations of its weights. Default: those of the training, or of a tracked checkpoint in
                `cfg.MODEL.WEIGHTS`, or what the name of a file there says (`model_0000099.pth`), or 0.

        Yields:
            What takes the results, as `DefaultTrainer.test` and `inference_on_dataset` return them.
        """
        opened = comm.is_main_process() and self._open_for_evaluation()
        self._tests += 1
        name = f"test-{self._tests}"
        self._listen(model, lambda: name)
        known = _facts.step_of_weights(*self._configs()) if self._trained is None else self._trained
        evaluated = EvaluationResults(known if step is None else int(step))
        self._model = model
        self._evaluation_inputs()
        try:
            yield evaluated
        except BaseException as error:
            self._model = None
            if opened and self._session is not None:
                self._session.training_ended(error)
            raise
        finally:
            if self._listener is not None:
                self._listener.stop()
        self._record_test(evaluated, name)
        if opened and self._session is not None:
            self._session.training_ended(None, _facts.log_files(self._output_dir), keep_open=self._keep_run_open)

    def _open_for_evaluation(self) -> bool:
        """Have an open run; False if there is one already."""
        session = self._session
        if session is not None and session.run.active:
            return False
        run_id = session.run.id if session is not None else self._restored.get("run_id")
        settings = self._placed_settings() if run_id else self._placed_settings().for_evaluation()
        run = settings.open(id=run_id, rank=0)
        if session is not None:
            session.run = run  # the test of a training belongs to the same run
            run.unfinished_status = "FAILED"
        else:
            self._session = TrainingSession(run, **self._session_arguments)
            self._configure(self._any_config(), _facts.effective_evaluation(*self._configs()))
        return True

    @guarded
    def _record_test(self, evaluated: EvaluationResults, name: str) -> None:
        if self._session is None:
            return
        step, own = evaluated.step, evaluated.scalars()
        canonical = _metrics.canonical_evaluation(own, "test")
        if own:
            named = {f"test/{metric}": value for metric, value in own.items()}
            evaluation = Evaluation(step, self._sizes.epoch(step), named, canonical, per_class=_metrics.per_class(own))
            self._session.evaluation_ended(evaluation, split="test")
            self._session.checkpoint_evaluated({**named, **canonical}, step)
        self._compare_classes("test")
        self._model = None
        self._predictions_ready(name, "test", step, canonical)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings, run_id = self._placed_settings(), self._restored.get("run_id")
        if run_id is None and self.trainer.start_iter > 0:
            run_id = settings.latest_run()  # registered after `resume_or_load`: the checkpoint's state went past us
        run = settings.open(id=run_id, rank=0)
        self._session = TrainingSession(run, **self._session_arguments)
        self._session.restore(self._restored)
        self._look_around()

    def _placed_settings(self) -> RunSettings:
        """The settings with the place of the run directory: the same on every rank."""
        if self._output_dir is None and self._trained is None:
            self._output_dir = self._checkpoint_folder()
        if self._output_dir is None:
            return self._settings
        parent = self._output_dir.absolute() / self._settings.parent.name
        return dataclasses.replace(self._settings, parent=parent)

    @guarded
    def _listen(self, model: Any, evaluation: Callable[[], str]) -> None:
        """Hear what the model says when it is evaluated, on every rank."""
        if not self._settings.backends or self._num_eval_images <= 0 or not isinstance(model, torch.nn.Module):
            return
        if self._watch is None:
            ranks = Ranks(self._placed_settings().parent, comm.get_rank(), comm.get_world_size())
            names = evaluated_datasets(*self._configs())
            self._watch = EvaluationWatch(names, ranks, self._num_eval_images, self._score_thresh)
        self._listener = ModelListener(model, functools.partial(self._hear, self._watch, evaluation))

    @guarded
    def _hear(self, watch: EvaluationWatch, evaluation: Callable[[], str], inputs: Any, outputs: Any) -> None:
        watch.see(evaluation(), inputs, outputs)

    @guarded
    def _predictions_ready(self, evaluation: str, split: str, step: int, metrics: Mapping[str, float]) -> None:
        if self._watch is None or self._session is None:
            return
        for found in self._watch.end(evaluation, split, metrics):
            self._session.predictions_ready(found, step, self._sizes.epoch(step), f"iter_{step}")

    @guarded
    def _look_around(self) -> None:
        """What the trainer consists of: evaluation period, checkpointers, batch and data set size, configuration."""
        assert self._session is not None  # noqa: S101 -- set by the only caller
        for checkpointer in self._checkpointers():
            self._observe(checkpointer)
        periods = [getattr(hook, "_period", 0) for hook in self._hooks() if hasattr(hook, "_func")]
        self._evaluation_period = min((period for period in periods if period), default=0)
        config = self._any_config()
        source = self._cfg if self._cfg is not None else config
        self._sizes = TrainingSizes(self.trainer, source)
        detector = _portable.detector(source, getattr(self.trainer, "model", None))
        self._configure(config, _facts.effective_training(self.trainer, source, self._sizes), detector)
        self._training_inputs()

    @guarded
    def _training_inputs(self) -> None:
        """What the training is made from."""
        assert self._session is not None  # noqa: S101 -- set by the only caller
        configs = self._configs()
        self._session.inputs_used(_inputs.dataset_inputs("train", training_datasets(*configs)))
        self._session.inputs_used(_inputs.dataset_inputs("val", evaluated_datasets(*configs)))
        if self.trainer.start_iter == 0:  # else it was resumed, and the weights are those of its own checkpoint
            self._weights_used("weights")
        self._model = getattr(self.trainer, "model", None)
        self._compare_classes("val")

    @guarded
    def _evaluation_inputs(self) -> None:
        """What is evaluated, and on what. In the run of a training the weights are its own."""
        if self._session is None:
            return
        configs = self._configs()
        self._session.inputs_used(_inputs.dataset_inputs("test", evaluated_datasets(*configs)))
        if self._trained is None and not self._restored:
            self._weights_used("checkpoint")

    def _weights_used(self, role: str) -> None:
        assert self._session is not None  # noqa: S101 -- callers have checked
        weights = initial_weights(*self._configs())
        used = list(_inputs.weights_used(weights, role))
        self._session.inputs_used(used)
        self._weights = weights if used else ""

    @guarded
    def _compare_classes(self, split: str) -> None:
        """Warn where the lists of classes, of the model, the weights and the data sets, do not fit together."""
        if self._session is None:
            return
        configs = self._configs()
        trained = [] if self._trained is None and split == "test" else training_datasets(*configs)
        lists = [*_inputs.class_lists("train", trained), *_inputs.class_lists(split, evaluated_datasets(*configs))]
        model = _inputs.classes_of_model(self._model, self._cfg)
        for things, stuff in lists:
            self._session.classes_compared(model[0], things)
            self._session.classes_compared(model[1], stuff)
            self._session.classes_compared(lists[0][0], things)
            self._session.classes_compared(_inputs.classes_of_weights(self._weights), things)

    def _configs(self) -> tuple[Any, ...]:
        """Every configuration within reach."""
        return self._cfg, self._config, self._trainer_config()

    def _any_config(self) -> Any:
        """What is recorded as parameters."""
        configs = (self._config, self._cfg, self._trainer_config())
        return next((config for config in configs if config is not None), None)

    def _trainer_config(self) -> Any:
        # Hooks do not keep their trainer alive.
        return None if self._trained is not None else getattr(self.trainer, "cfg", None)

    def _configure(self, config: Any, effective: Mapping[str, Any], detector: Detector | None = None) -> None:
        source = self._cfg if self._cfg is not None else config
        assert self._session is not None  # noqa: S101 -- callers have made it
        self._session.training_started(
            as_dict(config) if config is not None else {},
            effective,
            (CONFIG_FILE, as_yaml(source)) if source is not None else None,
            detector,
        )

    def _record(self, step: int, *, evaluations_only: bool = False) -> None:
        """Record every scalar that was put since the last time; `EventStorage.latest` holds the old ones too."""
        assert self._session is not None  # noqa: S101 -- callers have checked
        storage = self.trainer.storage
        source = storage.latest() if evaluations_only else storage.latest_with_smoothing_hint(WINDOW)
        hints = storage.smoothing_hints()
        rows: dict[int, tuple[dict[str, float], dict[str, float]]] = {}
        for name, (value, iteration) in source.items():
            if iteration <= self._sent_iteration.get(name, -1) or (evaluations_only and hints.get(name)):
                continue
            self._sent_iteration[name] = iteration
            training, evaluation = rows.setdefault(min(iteration + 1, step), ({}, {}))
            (evaluation if _metrics.is_evaluation(name) else training)[name] = float(value)
        for at, (training, evaluation) in sorted(rows.items()):
            if training:
                canonical = _metrics.canonical_training(training, self._sizes.images)
                if torch.cuda.is_available() and not evaluations_only:
                    canonical["perf/gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated())
                self._session.step_ended(at, self._sizes.epoch(at), training, canonical)
            if evaluation:
                canonical = _metrics.canonical_evaluation(evaluation)
                self._session.evaluation_ended(
                    Evaluation(
                        at,
                        self._sizes.epoch(at),
                        evaluation,
                        canonical,
                        _metrics.headline(evaluation),
                        _metrics.per_class(evaluation),
                    )
                )
                self._compare_classes("val")  # the data sets are loaded by now
                self._predictions_ready(str(at), "val", at, canonical)

    def _observe(self, checkpointer: Any) -> None:
        """Hear of every file that a checkpointer writes: its `save` is the one way of all hooks and of scripts."""
        save = checkpointer.save

        @functools.wraps(save)
        def observed(name: str, **kwargs: Any) -> None:
            self._begins(checkpointer, name)
            save(name, **kwargs)
            self._saved(checkpointer, name)

        checkpointer.save = observed

    @guarded
    def _begins(self, checkpointer: Any, name: str) -> None:
        if self._session is not None:
            self._session.checkpoint_begins(Path(checkpointer.save_dir) / f"{name}.pth")

    @guarded
    def _saved(self, checkpointer: Any, name: str) -> None:
        path = Path(checkpointer.save_dir) / f"{name}.pth"
        if self._session is None or not path.exists():
            return
        step = self._completed()
        best = not (name.startswith("model_") and name.removeprefix("model_").isdigit()) and name != "model_final"
        self._session.checkpoint_saved(
            CheckpointFile(path, step, self._sizes.epoch(step), f"iter_{step}", best_only=best)
        )

    def _completed(self) -> int:
        """Completed iterations, when the one that goes on is counted: after the last, no more goes on."""
        return int(min(self.trainer.iter + 1, self.trainer.max_iter))

    def _hooks(self) -> list[Any]:
        return list(getattr(self.trainer, "_hooks", []))

    def _checkpointers(self) -> list[Any]:
        """Every checkpointer within reach, once: the trainer's and those of its hooks."""
        owners = [self.trainer, *self._hooks()]
        found = [getattr(owner, name, None) for owner in owners for name in ("checkpointer", "_checkpointer")]
        return list({id(each): each for each in found if hasattr(each, "save") and hasattr(each, "save_dir")}.values())

    def _checkpoint_folder(self) -> Path | None:
        folders = [checkpointer.save_dir for checkpointer in self._checkpointers() if checkpointer.save_dir]
        return Path(folders[0]) if folders else None
