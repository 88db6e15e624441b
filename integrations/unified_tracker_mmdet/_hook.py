"""The hook: MMEngine's callbacks in, events of the training session out."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from unified_tracker import ConfigurationError, Run
from unified_tracker._access import Access
from unified_tracker._origins import step_of
from unified_tracker.training import CheckpointFile, Evaluation, RunSettings, TrainingSession, guarded
from unified_tracker_mmdet import _facts, _inputs, _metrics, _portable, _references
from unified_tracker_mmdet._arguments import read_init_kwargs
from unified_tracker_mmdet._predictions import EvaluationWatch
from unified_tracker_mmdet._scalars import TrainingScalars

STATE: Final = "unified_tracker"  # in the message hub, which travels in checkpoints
SUFFIXES: Final = (".json", ".log", ".py")


@HOOKS.register_module()
class UnifiedTrackerHook(Hook):
    """Records an MMEngine training, and evaluations without training, in MLflow, W&B or both.

    Every process registers it; only rank 0 records, and it adds no collective call. The run opens when training
    begins and goes on when the training is resumed; fine-tuning (`load_from`) makes a new one.
    Blocking: an iteration without a row costs two integer tests; a row costs reading the message hub and one write.
    """

    priority = "LOWEST"  # after `CheckpointHook` in every callback; custom hooks stand behind default ones

    def __init__(
        self,
        tracker: str | Sequence[str] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
        interval: int = 50,
        log_checkpoint: bool = False,
        log_checkpoint_metadata: bool = False,
        num_eval_images: int = 100,
        bbox_score_thr: float = 0.3,
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        best_metric: str | None = None,
        keep_last: int = 0,
        keep_every: int = 0,
        framework_names: bool = True,
        keep_run_open: bool = False,
        on_error: str | None = None,
        by_epoch: bool = True,
        ignore_last: bool = True,
        log_artifact: bool = True,
        out_suffix: str | Sequence[str] = SUFFIXES,
        reset_flag: bool = False,
        commit: bool = True,
        with_step: bool = True,
        define_metric_cfg: Any = None,
    ) -> None:
        """Settle the configuration; opens nothing.

        Args:
            tracker, options, on_error: As in `unified_tracker.start_run`.
            init_kwargs: Arguments of `wandb.init`: `project`, `name`, `notes` (the description), `tags`, `config`,
                `dir` (default: the work folder) and `id` hold for every backend, `entity`, `group`, `job_type` and
                `mode` for W&B. Others are named in one warning and ignored.
            interval: Iterations between two rows of training metrics.
            log_checkpoint: Record checkpoints, as `CheckpointHook` leaves them.
            log_checkpoint_metadata: Bind the metrics of an evaluation at the same step to each checkpoint.
            num_eval_images: Images of which each validation and test records predictions, always the same ones; 0 for
                none, all if there are fewer.
            bbox_score_thr: Where the score slider of their views starts. All predictions are recorded.
            best_metric: The metric that decides the alias "best", for example "coco/segm_mAP"; default: the first one
                of `CheckpointHook.save_best`, else the first of an evaluation, boxes before masks.
            keep_last, keep_every: What the backend keeps of the checkpoints, as in `Run.log_checkpoint`.
            framework_names: Record MMEngine's own names beside the canonical ones.
            keep_run_open: Leave `run` open after training; it is finished by `run.finish()` or at exit.
            by_epoch, ignore_last: Where rows stand, as for MMEngine's `LoggerHook`: `interval` is counted from the
                beginning of each epoch (True) or of the training; the end of an epoch has a row if `ignore_last` is
                False or the epoch is not longer than `interval`. The last iteration of the schedule always has one.
            log_artifact, out_suffix: Record the log files of this run whose names end so, and the configuration.
            reset_flag, commit, with_step, define_metric_cfg: Of the 2.x hook, without a meaning here: rows are always
                whole, and every metric stands on one axis, the completed iterations.

        Raises:
            ConfigurationError: On every process alike, before training.
        """
        given = read_init_kwargs(init_kwargs, options)
        try:
            self._settings = RunSettings.resolve(tracker, options=given.options, on_error=on_error, **given.run)
        except ConfigurationError as error:
            raise ConfigurationError(str(error)) from None  # registries of old make errors anew, from one string
        _references.use(Access.of(self._settings, given.options))  # the data sets are built after the hooks
        if not isinstance(interval, int) or interval < 1:
            raise ConfigurationError(f"interval must be a positive number of iterations, not {interval!r}")
        self._id, self._config, self._ignored = given.id, given.config, given.ignored
        self._interval, self._by_epoch, self._ignore_last = interval, bool(by_epoch), bool(ignore_last)
        self._log_checkpoint, self._best_metric = bool(log_checkpoint), best_metric
        self._session_arguments: dict[str, Any] = {
            "log_checkpoint_metadata": bool(log_checkpoint_metadata),
            "framework_names": bool(framework_names),
            "keep_last": int(keep_last),
            "keep_every": int(keep_every),
        }
        self._keep_run_open = bool(keep_run_open)
        suffixes = (out_suffix,) if isinstance(out_suffix, str) else out_suffix
        # MMCV 1.x called the log of scalars "*.log.json".
        self._suffixes = tuple(suffix.removeprefix(".log") or suffix for suffix in suffixes) if log_artifact else ()
        self.num_eval_images, self.bbox_score_thr = int(num_eval_images), float(bbox_score_thr)
        self._watch: EvaluationWatch | None = None
        self._run: Run | None = None
        self._session: TrainingSession | None = None
        self._scalars: TrainingScalars
        self._sizes: _facts.TrainingSizes
        self._training = False
        self._loaded: tuple[int, int] | None = None
        self._loaded_meta: dict[str, Any] = {}
        self._weights = ""  # that it began with, or evaluates
        self._epoch_row = self._last_step = 0

    @property
    def run(self) -> Run:
        """The run, once training has begun; on other ranks, and with tracking off, one that records nothing.

        Raises:
            RuntimeError: Training has not begun.
        """
        if self._run is None:
            raise RuntimeError("hook.run exists once training or testing has begun")
        return self._run

    # ---- training ----------------------------------------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        """Refuse a second tracker hook: both would write the same run.

        Raises:
            ConfigurationError: There is one.
        """
        if sum(isinstance(hook, UnifiedTrackerHook) for hook in runner.hooks) > 1:
            raise ConfigurationError(
                'two tracker hooks in one runner: name both backends in one, tracker=["mlflow", "wandb"]'
            )

    @guarded
    def before_train(self, runner: Runner) -> None:
        """Open the run on rank 0: the same one as before if the training is resumed."""
        resumed = runner.message_hub.get_info(STATE) if runner.iter > 0 else None  # `load_from` begins at 0
        self._training, self._loaded = True, None
        self._open(runner, resumed or {})
        if self._session is not None:
            self._prepare(runner, self._session)
            self._training_inputs(runner, self._session)
        for split in ("train", "val"):
            _references.reach_workers(_facts.loader(runner, split))

    @guarded
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Record the checkpoints of earlier steps: evaluation, which may rewrite them, is over."""
        if self._session is not None and self._session.unsettled:
            self._session.settle(before_step=runner.iter + 1)
            self._remember(runner)

    @guarded
    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Record a row if one is due."""
        if self._session is None:
            return
        place = batch_idx + 1 if self._by_epoch else runner.iter + 1
        if place % self._interval and place != self._epoch_row and runner.iter + 1 != self._last_step:
            return
        step = runner.iter + 1
        own = self._scalars.read(batch_idx)
        self._session.step_ended(
            step, self._sizes.epoch(step), own, _metrics.canonical_training(own, self._sizes.images)
        )

    @guarded
    def after_run(self, runner: Runner) -> None:
        """Record what is left, and that it went well: MMEngine does not come here after an exception."""
        self._training = False
        if self._session is not None and self._session.run.active:
            files = _facts.log_files(runner, self._suffixes) if self._suffixes else []
            self._session.training_ended(None, files, keep_open=self._keep_run_open)

    # ---- evaluation --------------------------------------------------------------------------------------------

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember which step an evaluation without training is about, and what the checkpoint says of its classes."""
        meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
        self._loaded_meta = meta if isinstance(meta, dict) else {}
        if isinstance(meta, dict) and "iter" in meta:
            self._loaded = int(meta["iter"]), int(meta.get("epoch", 0))

    @guarded
    def before_val(self, runner: Runner) -> None:
        """Open a run if `runner.val()` is called without training; prepare for its predictions, on every rank."""
        self._open_for_evaluation(runner)
        self._evaluation_inputs(runner, "val")
        self._watch_begins(runner, "val")

    @guarded
    def before_test(self, runner: Runner) -> None:
        """Open a run if `runner.test()` is called without training; after it, the training's run goes on."""
        self._open_for_evaluation(runner)
        self._evaluation_inputs(runner, "test")
        self._watch_begins(runner, "test")

    @guarded
    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take the predictions of the sample, on every rank."""
        if self._watch is not None:
            self._watch.see(outputs)

    after_test_iter = after_val_iter

    @guarded
    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        """Record an evaluation."""
        if self._session is None:
            return
        own = _metrics.scalars(metrics or {})
        canonical = _metrics.canonical_evaluation(own)
        step, epoch = self._position(runner)
        if own:
            times = self._scalars.evaluation_times if self._training else {}
            evaluation = Evaluation(
                step,
                epoch,
                {**own, **times},
                canonical,
                _metrics.headline(own),
                _metrics.per_class(own, _facts.class_names(runner.val_dataloader)),
            )
            self._session.evaluation_ended(evaluation)
            self._session.checkpoint_evaluated({**own, **canonical}, step)
        self._predictions_ready("val", step, epoch, canonical)

    @guarded
    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        """Record a test; it says nothing about which checkpoint is the best."""
        if self._session is None:
            return
        own = _metrics.scalars(metrics or {})
        canonical = _metrics.canonical_evaluation(own, "test")
        step, epoch = self._position(runner)
        if own:
            named = {f"test/{name}": value for name, value in own.items()}
            self._session.step_ended(step, epoch, named, canonical)
            self._session.checkpoint_evaluated({**named, **canonical}, step)
        for task, rows in _metrics.per_class(own, _facts.class_names(runner.test_dataloader)).items():
            self._session.run.log_table(f"test/{task}/per_class", ["category", "AP"], rows, step)
        self._predictions_ready("test", step, epoch, canonical)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _open(self, runner: Runner, state: Mapping[str, Any], *, training: bool = True) -> None:
        settings = self._settings if training else self._settings.for_evaluation()
        if settings.parent.parent == settings.working:  # nobody has said where
            settings = dataclasses.replace(settings, parent=Path(runner.work_dir).absolute() / settings.parent.name)
        self._run = settings.open(config=self._config, id=state.get("run_id") or self._id, rank=runner.rank)
        if self._settings.backends and self.num_eval_images > 0 and self._watch is None:
            self._watch = EvaluationWatch(runner, settings.parent, self.num_eval_images, self.bbox_score_thr)
        if not self._run.active:
            return
        hook = _facts.checkpoint_hook(runner)
        best = getattr(hook, "save_best", None) or ["auto"]
        self._session = TrainingSession(
            self._run,
            log_checkpoint=self._log_checkpoint,
            best_metric=self._best_metric or (best[0] if best[0] != "auto" else None),
            **self._session_arguments,
        )
        self._session.restore(state)
        if self._ignored:
            _warn(f"init_kwargs: no meaning here, ignored: {', '.join(self._ignored)}")

    @guarded
    def _prepare(self, runner: Runner, session: TrainingSession) -> None:
        """Sizes, places of rows, checkpoints, configuration."""
        self._scalars, self._sizes = TrainingScalars(runner), _facts.TrainingSizes(runner)
        self._last_step = runner.max_iters
        length = self._sizes.loader or 0
        self._epoch_row = length if self._by_epoch and (not self._ignore_last or length <= self._interval) else 0
        if self._log_checkpoint:
            self._observe_checkpoints(runner)
        self._remember(runner)
        effective = _facts.effective_training(runner, self._sizes)
        file = _facts.configuration_file(runner) if self._suffixes else None
        detector = _portable.detector(runner) if self._log_checkpoint else None
        session.training_started(_facts.configuration(runner), effective, file, detector)

    @guarded
    def _training_inputs(self, runner: Runner, session: TrainingSession) -> None:
        """What the training is made from, and whether the classes of it all fit together."""
        for split in ("train", "val"):
            session.inputs_used(_inputs.dataset_inputs(split, _facts.loader(runner, split)))
        if runner.iter == 0:  # else it was resumed, and the weights are those of its own checkpoint
            session.inputs_used(_inputs.weights_used(runner))
            self._weights = str(runner._load_from or "")
        for split in ("train", "val"):
            self._compare_classes(runner, session, split)

    @guarded
    def _evaluation_inputs(self, runner: Runner, split: str) -> None:
        """What is evaluated, and on what; validations of a training have said it when it began."""
        loader, session = _facts.loader(runner, split), self._session
        _references.reach_workers(loader)
        if session is None or self._training:
            return
        session.inputs_used(_inputs.dataset_inputs(split, loader))
        if not self._last_step:  # no training went before
            session.inputs_used(_inputs.checkpoint_used(runner))
            self._weights = str(runner._load_from or "")
        self._compare_classes(runner, session, split)

    def _compare_classes(self, runner: Runner, session: TrainingSession, split: str) -> None:
        loader = _facts.loader(runner, split)
        classes = _inputs.classes_of_loader(split, loader)
        session.classes_compared(_inputs.classes_of_model(runner.model), classes)
        for annotated in _inputs.classes_of_annotations(loader):
            if set(classes.names) - set(annotated.names):  # a subset of them, in any order, is a choice
                session.classes_compared(annotated, classes)
        if split != "train" and self._last_step:
            trained = _inputs.classes_of_loader("train", _facts.loader(runner, "train"))
            session.classes_compared(trained, classes)
        if self._weights:
            before = _inputs.classes_of_checkpoint(self._weights, self._loaded_meta)
            if before.size == classes.size or _references.is_reference(self._weights):
                session.classes_compared(before, classes)

    def _open_for_evaluation(self, runner: Runner) -> None:
        if self._training or (self._run is not None and (self._session is None or self._run.active)):
            return
        if self._session is None:
            self._open(runner, {}, training=False)
            if self._session is not None:
                effective = _facts.effective_evaluation(runner, self._loaded)
                self._session.training_started(_facts.configuration(runner), effective)
        else:
            session = self._session
            self._open(runner, session.state())
            session.run, self._session = self.run, session  # the evaluations of the training belong to the same run
            session.run.unfinished_status = "FAILED"

    @guarded
    def _watch_begins(self, runner: Runner, split: str) -> None:
        if self._watch is not None:
            self._watch.begin(runner, split)

    @guarded
    def _predictions_ready(self, split: str, step: int, epoch: float | None, metrics: Mapping[str, float]) -> None:
        if self._watch is None or self._session is None:
            return
        evaluation = self._watch.end(split, metrics)
        if evaluation is not None:
            counts_epochs = self._sizes.by_epoch if self._last_step else bool(epoch)
            whole = counts_epochs and epoch is not None and float(epoch).is_integer()
            alias = f"epoch_{epoch:.0f}" if whole else f"iter_{step}"
            self._session.predictions_ready(evaluation, step, epoch, alias)

    def _position(self, runner: Runner) -> tuple[int, float | None]:
        """Completed iterations and epochs of the weights that are evaluated."""
        if self._loaded is not None:
            return self._loaded
        if not self._last_step:  # weights without a training: asking for `runner.iter` would build the training loop
            return step_of(self._weights) or 0, None
        return runner.iter, self._sizes.epoch(runner.iter)

    def _observe_checkpoints(self, runner: Runner) -> None:
        """Hear of every file that the runner writes: its `save_checkpoint` is the one way of all hooks and scripts."""
        hook = _facts.checkpoint_hook(runner)
        if hook is None:
            _warn("log_checkpoint=True needs a CheckpointHook, and there is none: no checkpoint is recorded")
            return
        if "://" in str(hook.out_dir):
            _warn(f"checkpoints go to {hook.out_dir}, which is no local folder: they are not recorded")
            return
        save = runner.save_checkpoint

        @functools.wraps(save)
        def observed(out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
            self._remember(runner)
            self._begins(Path(out_dir) / filename)
            save(out_dir, filename, *args, **kwargs)
            self._saved(runner, Path(out_dir) / filename, hook.by_epoch, kwargs.get("meta") or {})

        runner.save_checkpoint = observed

    @guarded
    def _begins(self, path: Path) -> None:
        if self._session is not None:
            self._session.checkpoint_begins(path)

    @guarded
    def _saved(self, runner: Runner, path: Path, by_epoch: bool, meta: Mapping[str, Any]) -> None:
        if self._session is None or not path.exists():
            return
        step = int(meta.get("iter", runner.iter))
        epoch = self._sizes.epoch(step)
        alias = f"epoch_{meta.get('epoch', runner.epoch)}" if by_epoch else f"iter_{step}"
        best = path.name.startswith("best_")  # as `CheckpointHook` names it, whatever `filename_tmpl` is
        self._session.checkpoint_saved(CheckpointFile(path, step, epoch, alias, best_only=best))

    @guarded
    def _remember(self, runner: Runner) -> None:
        """Put into the message hub, and so into checkpoints, what a resumed training needs to go on as this run."""
        if self._session is not None:
            runner.message_hub.update_info(STATE, self._session.state())


@HOOKS.register_module()
class MMDetWandbHook(UnifiedTrackerHook):
    """The hook of MMDetection 2.x, by its old name and with its arguments: records in W&B."""

    def __init__(
        self,
        init_kwargs: Mapping[str, Any] | None = None,
        interval: int = 50,
        log_checkpoint: bool = False,
        log_checkpoint_metadata: bool = False,
        num_eval_images: int = 100,
        bbox_score_thr: float = 0.3,
        *,
        tracker: str | Sequence[str] | None = "wandb",
        options: Mapping[str, Mapping[str, Any]] | None = None,
        **more: Any,
    ) -> None:
        """Settle the configuration.

        Args:
            init_kwargs, interval, log_checkpoint, log_checkpoint_metadata, num_eval_images, bbox_score_thr: As in
                `UnifiedTrackerHook`.
            tracker: Another backend, or both.
            options: As in `UnifiedTrackerHook`; W&B's `names` is "mmdet2" unless it says otherwise.
            more: Further arguments of `UnifiedTrackerHook`.
        """
        if options is None or isinstance(options, Mapping):
            given = dict(options or {})
            options = {**given, "wandb": {"names": "mmdet2", **(given.get("wandb") or {})}}
        super().__init__(
            tracker,
            init_kwargs,
            interval,
            log_checkpoint,
            log_checkpoint_metadata,
            num_eval_images,
            bbox_score_thr,
            options=options,
            **more,
        )


def _warn(text: str) -> None:
    print_log(f"unified-tracker: {text}", logger="current", level=logging.WARNING)
