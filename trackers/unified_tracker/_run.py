"""The run: what a training says, turned into records. One append to the journal is all that a call costs."""

from __future__ import annotations

import builtins
import contextlib
import functools
import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, ParamSpec, cast

import msgspec

from unified_tracker._console import say
from unified_tracker._errors import RecordError
from unified_tracker._journal import Journal, now_ms
from unified_tracker._launcher import UploaderProcess
from unified_tracker._mask import mask, mask_text
from unified_tracker._media import figure_content, image_content, table_content
from unified_tracker._rundir import RunDirectory
from unified_tracker._staging import Hold, Staging
from unified_tracker._tracker import RunInfo
from unified_tracker._values import as_text, number, plain, shown, step_number
from unified_tracker._watch import DeliveryWatch
from unified_tracker.records import (
    Artifact,
    Finished,
    Input,
    Media,
    Number,
    Params,
    Predictions,
    Record,
    StagedFile,
    Status,
    Tags,
)

if TYPE_CHECKING:
    from unified_tracker.predictions import SampleEvaluation
    from unified_tracker.predictions._writer import SampleWriter

OnError = Literal["warn", "raise"]
P = ParamSpec("P")

REWRITTEN: Final = re.compile(r"(model_best|model_final|last|latest|best)(\.\w+)*", re.IGNORECASE)
COMPANIONS: Final = "companions"  # in the run directory: kept, and small
PULSE_S: Final = 2.0
WARNINGS: Final = 100  # kinds of them, over the life of a run
KILL_CODES: Final = frozenset({130, 137, 143})  # 128 + SIGINT, SIGKILL, SIGTERM


class _RefusedError(RecordError):
    """What `on_error="raise"` raises: counted and said already."""


def _call(method: Callable[Concatenate[Run, P], None]) -> Callable[Concatenate[Run, P], None]:
    """A log call: does nothing on a run that does not record, and never lets its own trouble end a training."""

    @functools.wraps(method)
    def call(self: Run, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.active:
            return
        try:
            method(self, *args, **kwargs)
        except _RefusedError:
            raise
        except Exception as error:  # noqa: BLE001 -- promise 3: tracking never ends a training
            self._refuse(method.__name__, f"{type(error).__name__}: {error}", error=error)

    return cast("Callable[Concatenate[Run, P], None]", call)


class Run:
    """One tracked training. Made by `start_run`.

    Threads: every method may be called from any thread. Blocking: nothing waits for a backend; a call costs encoding
    and one write to the local disk, staging a file additionally a link or a copy. Processes: a forked child's calls do
    nothing; a run that is sent to another process arrives as one that records nothing.
    After a crash: whatever was logged when a call returned is delivered by the uploader, which lives on, by the next
    run in the same directory, or by `unified-tracker sync`.

    Errors: with `on_error="warn"` no method raises: what cannot be recorded is refused with one warning for each kind,
    counted, and the rest of the call is recorded. With "raise" it is a `RecordError`, also after the rest was recorded.
    """

    def __init__(
        self,
        info: RunInfo,
        directory: RunDirectory | None,
        journal: Journal | None,
        uploader: UploaderProcess | None,
        on_error: OnError,
    ) -> None:
        self._info = info
        self._directory, self._journal, self._uploader = directory, journal, uploader
        self._on_error = on_error
        self._staging = Staging(directory.path, journal.attempt) if directory and journal else None
        self._samples: SampleWriter | None = None
        self._watch: DeliveryWatch | None = None
        if directory and journal and uploader:
            self._watch = DeliveryWatch(directory, list(info.backends), uploader, journal.sequence)
        self._next_pulse_ns = 0
        self._next_step, self._steps_given = 0, False
        self._warned: set[str] = set()
        self._refused = 0
        self._logged_paths: set[Path] = set()
        self._finished = False
        self.unfinished_status: Status = "FINISHED"

    def __reduce__(self) -> tuple[Any, ...]:
        return _inactive, (msgspec.json.encode(self._info),)

    @property
    def id(self) -> str:
        """Eight characters that name this run in every backend, in artifact names and on the command line."""
        return self._info.id

    @property
    def info(self) -> RunInfo:
        """Everything that is fixed about this run."""
        return self._info

    @property
    def dir(self) -> Path | None:
        """The run directory; None when nothing is recorded."""
        return self._directory.path if self._directory else None

    @property
    def active(self) -> bool:
        """True while calls are recorded: false with tracking off, on ranks above 0, in forks, and when finished."""
        return self._journal is not None and not self._journal.closed

    @property
    def refused(self) -> int:
        """How many values and calls could not be recorded so far."""
        return self._refused + (self._journal.lost if self._journal else 0)

    # ---- what a training says ----------------------------------------------------------------------------------

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record scalars.

        Args:
            metrics: Name to value: Python or numpy numbers, booleans, tensors of one element. NaN and infinities are
                kept. What is no number is refused, the others are recorded.
            step: Completed optimiser iterations, int64; may repeat and go back. None: counts up by one with every
                call as long as no step was ever given, afterwards the last one given.

        Blocking: microseconds, whatever the backend does (`benchmarks/`). A CUDA tensor waits for its device.
        """
        if self._journal is None:
            return
        try:
            for name, value in metrics.items():
                if type(value) is not float or type(name) is not str:
                    break
            else:
                if type(step) is int and -0x8000000000000000 <= step <= 0x7FFFFFFFFFFFFFFF:
                    self._steps_given, self._next_step = True, step
                    if not self._journal.append_metrics(metrics, step):  # type: ignore[arg-type]  # msgspec takes any mapping of floats
                        self._lost()
                    elif time.monotonic_ns() >= self._next_pulse_ns:
                        self._pulse()
                    return
        except _RefusedError:
            raise
        except Exception:  # noqa: BLE001, S110 -- a name that cannot be encoded, no mapping at all: the slow way sorts it out
            pass
        self._log_mixed(metrics, step)

    @_call
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters: nested mappings of anything; secrets are masked, objects become text.

        A parameter logged before with another value is kept by the backend as it was first; the change is recorded.
        """
        values = mask(plain(params))
        if not isinstance(values, dict):
            raise RecordError(f"parameters must be a mapping, not {type(params).__name__}")
        try:
            self._append(Params(now_ms(), values))
        except ValueError:  # larger than a record may be: key by key, so that only what is too large itself is refused
            self._refuse("log_params", *(f"parameter {name!r}: {why}" for name, why in self._one_by_one(values)))

    @_call
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Record tags; the last value of a key wins."""
        self._append(Tags(now_ms(), {as_text(key): mask(as_text(value), as_text(key)) for key, value in tags.items()}))

    @_call
    def log_image(self, name: str, image: Any, step: int | None = None, caption: str | None = None) -> None:
        """Record a picture.

        Args:
            name: For example "val/sample".
            image: RGB, shape (height, width, 3), or grey, (height, width); uint8, or float 0 to 1. A PIL image works.
                Copied: may be reused at once. It is encoded by the uploader.
            step: As in `log_metrics`.
            caption: Text below the picture.
        """
        self._media("array", name, step, "npy", image_content(name, image), caption)

    @_call
    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        """Record a text."""
        self._media("text", name, step, "txt", mask_text(as_text(text)).encode())

    @_call
    def log_table(
        self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int | None = None
    ) -> None:
        """Record a table.

        Args:
            name: For example "val/per_class".
            columns: Column names.
            rows: As many values a row as there are columns: strings, numbers, booleans, None.
            step: As in `log_metrics`.
        """
        self._media("table", name, step, "json", table_content(name, columns, rows))

    @_call
    def log_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Record a matplotlib figure (as PNG) or a plotly figure (as HTML).

        Blocking: the figure is rendered before the call returns, since it may change afterwards.
        """
        self._media("figure", name, step, *figure_content(name, figure))

    @_call
    def log_artifact(
        self,
        path: str | Path,
        name: str | None = None,
        type: str = "file",  # noqa: A002 -- the word that every tracking API uses
        aliases: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a file or everything below a folder.

        Args:
            path: File or folder; copied before the call returns, may change afterwards.
            name: Name of a versioned artifact; each call with other content makes a new version. None: plain files of
                the run, found under their own names.
            type: What it is: "dataset", "result", ...
            aliases: Names that move to this version; "latest" is implied.
            metadata: Stored with the version.
        """
        files = self._hold(Path(path), "copy")
        label = None if name is None else as_text(name)
        record = Artifact(now_ms(), label, as_text(type), files, _aliases(aliases), _metadata(metadata))
        self._append(record)

    @_call
    def _log_artifact_files(
        self,
        files: Iterable[tuple[str, Path]],
        name: str,
        type: str,  # noqa: A002 -- as in `log_artifact`
        how: Hold,
        aliases: Sequence[str],
        metadata: Mapping[str, Any],
    ) -> None:
        """`log_artifact` of files that lie in different places, each under its own name. For data sets."""
        assert self._staging is not None  # noqa: S101 -- `_call` has checked `active`
        held = self._staging.hold_all(files, how)
        self._append(Artifact(now_ms(), name, type, held, _aliases(aliases), _metadata(metadata)))

    @_call
    def log_checkpoint(
        self,
        path: str | Path,
        step: int | None = None,
        epoch: float | None = None,
        metrics: Mapping[str, Any] | None = None,
        aliases: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        keep_last: int = 0,
        keep_every: int = 0,
        *,
        _companions: Mapping[str, bytes] | None = None,
    ) -> None:
        """Record a model checkpoint as the next version of `run-<run id>-model`.

        Args:
            path: The file, or a folder (sharded checkpoints). It must be complete. It is cloned or hard-linked, so
                that it may be renamed or deleted at once. The uploader makes a link private within some 50 ms; who
                opens the file for writing while it copies waits for it. Without an uploader, names that frameworks
                write over in place (`model_best.pth`, `last.pth`) and paths logged before are copied in this call.
                The bytes that were logged are delivered, or the run says that they had been written over.
            step: Completed optimiser iterations.
            epoch: Completed epochs; may be fractional.
            metrics: Metrics of exactly this checkpoint.
            aliases: Names that move to this version, such as "best"; "latest" is implied.
            metadata: Stored with the version.
            keep_last: How many versions of this model the backend keeps; 0 for all of them. Never removed are those
                that have a name ("latest", "best", one of yours) or that another run was made from.
            keep_every: Keep also those whose step is a multiple of this; 0 for none of them.
            _companions: Of the training session: name to content of files that belong beside it, held once a run.
        """
        source = Path(path)
        at_risk = source in self._logged_paths or REWRITTEN.fullmatch(source.name) is not None
        how: Hold = "guarded" if at_risk else "link"
        files = self._hold(source, how)
        self._logged_paths.add(source)
        values, refused = self._numbers(metrics or {})
        record = Artifact(
            now_ms(),
            f"run-{self.id}-model",
            "model",
            (*files, *self._beside(files, _companions or {})),
            _aliases(aliases),
            _metadata(metadata),
            values,
            step_number(step)[0],
            None if epoch is None else number(epoch),
            max(0, int(keep_last)),
            max(0, int(keep_every)),
        )
        self._append(record)
        self._refuse("log_checkpoint", *refused)

    @_call
    def log_predictions(
        self,
        evaluation: SampleEvaluation,
        step: int | None = None,
        epoch: float | None = None,
        aliases: Sequence[str] = (),
    ) -> None:
        """Record what the model said about the sample of validation images, as a version of `run-<run id>-predictions`.

        The uploader matches, counts, draws, and makes the page; `unified_tracker.predictions` has the types.

        Args:
            evaluation: The sample and the predictions. Arrays are packed before the call returns, image files are read
                later, by the uploader. An image that does not fit together is refused with a warning, the others are
                recorded.
            step: As in `log_metrics`.
            epoch: Completed epochs; may be fractional.
            aliases: Names that move to this version, such as "best"; "latest" is implied.

        Blocking: packing and one write; masks given as bitmaps are encoded (0.2 ms each at 640x480, `benchmarks/`).
        The same sample object is packed once.
        """
        assert self._staging is not None  # noqa: S101 -- `_call` has checked `active`
        if self._samples is None:
            from unified_tracker.predictions._writer import SampleWriter  # NumPy: 0.1 s, for those who evaluate

            self._samples = SampleWriter(self._staging)
        sample, file, refused = self._samples.write(evaluation)
        whole = step_number(step)[0]
        record = Predictions(
            now_ms(),
            whole if whole is not None else self._next_step,
            None if epoch is None else number(epoch),
            as_text(evaluation.split),
            as_text(evaluation.sample.dataset),
            sample,
            file,
            _aliases(aliases),
            self._samples.images,
        )
        self._append(record)
        self._refuse("log_predictions", *refused)

    def use_artifact(self, reference: str, role: str = "input") -> Path:
        """Fetch a version of an artifact and record that this run is made from it.

        Args:
            reference: `mlflow-artifact://[experiment/]name:alias`, `wandb-artifact://[entity/project/]name:alias`,
                `models:/name@alias` or `runs:/run/path`. A backend that the run records to is asked with the run's
                options, any other with those of `tracker.yaml`.
            role: What it is used as: "weights", "train", "val", ...

        Returns:
            The folder that holds the files. It is shared by all processes of the machine: not to be written to.

        Blocking: asks the backend, in a helper process, and downloads what this machine does not have: seconds or
        longer. Not for a training's loop.

        Raises:
            ConfigurationError: It is no reference, or its backend cannot be used.
            TrackerError: The backend does not answer, has no such version, or holds something that is refused. Nothing
                is recorded.
        """
        from unified_tracker._fetching import fetch, input_of  # not for those who fetch nothing

        secrets = self._uploader.secrets if self._uploader is not None else {}
        options = {name: self._info.reading(name) for name in self._info.backends}
        found = fetch(reference, options, checked=True, environment=secrets, again=True)
        self._log_input(input_of(found, role))
        return found.folder

    @_call
    def _log_input(self, record: Input) -> None:
        """Something that the run was made from. For `use_artifact` and the training session."""
        self._append(record)

    @_call
    def _before_rewrite(self, path: Path) -> None:
        """A checkpoint is about to be written over, say the adapters. Waits for the copy of one logged just now."""
        assert self._staging is not None  # noqa: S101 -- `_call` has checked `active`
        self._staging.before_rewrite(path)

    @_call
    def _log_file(self, name: str, content: bytes | Path) -> None:
        """A plain file of the run under a name of its own. For the training session."""
        assert self._staging is not None  # noqa: S101 -- `_call` has checked `active`
        if isinstance(content, bytes):
            staged = self._staging.write(name, content)
        else:
            staged = self._staging.hold(content, name, "copy")
        self._append(Artifact(now_ms(), None, "file", (staged,)))

    # ---- the end -----------------------------------------------------------------------------------------------

    def finish(self, status: Status = "FINISHED", reason: str | None = None, timeout_s: float = 30.0) -> bool:
        """End the run, wait for delivery within a limit, and say where it stands.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            reason: Why, for "FAILED" and "KILLED".
            timeout_s: How long to wait, in seconds. What is pending then is delivered by the uploader, which lives on.

        Returns:
            True when every backend holds everything. A second call does nothing and returns the same.
        """
        if self._directory is None or self._journal is None or self._watch is None:
            return True
        if not self._journal.closed:
            with contextlib.suppress(Exception):  # a last write that fails leaves the run without its status: KILLED
                self._write_end(status, reason)
            last = self._journal.sequence
            with contextlib.suppress(Exception):  # promise 3; the uploader goes on whatever happens here
                self._journal.close()
                self._directory.unlock_writer()
                self._finished = self._watch.wait(last, timeout_s)
        return self._finished

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(status_of(error), reason_of(error))

    def finish_at_exit(self) -> None:
        """What `atexit` calls: the interpreter ends and nobody has called `finish`."""
        if not self.active:
            return
        error = None
        if not hasattr(builtins, "__IPYTHON__"):  # there it is whatever some cell raised, hours ago
            error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        self.finish(status_of(error) if error else self.unfinished_status, reason_of(error))

    # ---- inside ------------------------------------------------------------------------------------------------

    def _log_mixed(self, metrics: Mapping[str, Any], step: Any) -> None:
        """The general way of `log_metrics`: convert, refuse what is no number, record the rest."""
        if self._journal is None:
            return
        try:
            values, refused = self._numbers(metrics)
            whole, bad = step_number(step)
            if whole is not None:
                self._steps_given, self._next_step = True, whole
            elif step is None:
                whole = self._next_step
                self._next_step += 0 if self._steps_given else 1
            if (values or not metrics) and not self._journal.append_metrics(values, whole, bad):
                self._lost()
            if bad is not None:
                refused.append(f"the step is no 64-bit integer: {bad}; recorded without a step")
            self._refuse("log_metrics", *refused)
        except _RefusedError:
            raise
        except Exception as error:  # noqa: BLE001 -- promise 3
            self._refuse("log_metrics", f"{type(error).__name__}: {error}", error=error)
        if time.monotonic_ns() >= self._next_pulse_ns:
            self._pulse()

    def _numbers(self, metrics: Mapping[str, Any]) -> tuple[dict[str, Number], list[str]]:
        """What of the metrics is a number, and a sentence about each that is none."""
        values: dict[str, Number] = {}
        refused: list[str] = []
        for name, value in metrics.items():
            converted = number(value)
            if converted is None:
                kind = type(value).__name__
                refused.append(f"metric {as_text(name)!r} is no number: {shown(value, 80)} ({kind})")
            else:
                values[as_text(name)] = converted
        return values, refused

    def _one_by_one(self, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Record each parameter in a record of its own; gives those that are too large even so, and why."""
        for name, value in params.items():
            try:
                self._append(Params(now_ms(), {name: value}))
            except ValueError as error:  # noqa: PERF203 -- a configuration of over 16 MiB is no everyday matter
                yield name, str(error)

    def _beside(self, files: Sequence[StagedFile], companions: Mapping[str, bytes]) -> Iterator[StagedFile]:
        """The companions of a checkpoint, staged; what it has itself goes before. Without them it is recorded too."""
        assert self._staging is not None  # noqa: S101 -- `_call` has checked `active`
        own = {file.path for file in files}
        for name, content in companions.items():
            if name in own:
                continue
            digest = hashlib.sha256(content).hexdigest()[:32]
            try:
                staged = self._staging.keep(f"{COMPANIONS}/{digest}-{name}", content)
            except OSError as error:
                say(f"{name} cannot be recorded beside the checkpoint: {error}")
                continue
            yield msgspec.structs.replace(staged, path=name)

    def _hold(self, source: Path, how: Hold) -> tuple[StagedFile, ...]:
        """Stage a file or a folder; a refusal is told on the run, with its reason."""
        assert self._staging is not None  # noqa: S101 -- `_call` has checked `active`
        try:
            return self._staging.hold_tree(source, how)
        except OSError as error:
            self._append(Tags(now_ms(), {"unified_tracker.refused_file": mask_text(f"{source.name}: {error}")[:500]}))
            raise

    def _media(
        self,
        form: Literal["array", "text", "table", "figure"],
        name: str,
        step: int | None,
        suffix: str,
        content: bytes,
        caption: str | None = None,
    ) -> None:
        assert self._staging is not None  # noqa: S101 -- `_call` has checked `active`
        name = as_text(name)
        whole = step_number(step)[0]
        staged: StagedFile = self._staging.write(f"{name}.{suffix}", content)
        words = None if caption is None else mask_text(as_text(caption))
        self._append(Media(now_ms(), form, name, whole if whole is not None else self._next_step, staged, words))

    def _append(self, record: Record) -> None:
        assert self._journal is not None  # noqa: S101 -- `_call` has checked `active`
        if not self._journal.append(record):
            self._lost()

    def _lost(self) -> None:
        journal = self._journal
        if journal is None or journal.closed:
            return  # finished, or a forked child: nothing is meant to be recorded
        self._refuse("journal", f"{journal.first_error}; records are being lost until the disk takes them again")

    def _write_end(self, status: Status, reason: str | None) -> None:
        """The last records. They take the room that was kept for them if the disk has no other."""
        assert self._journal is not None  # noqa: S101 -- called while the journal is open
        why = mask_text(as_text(reason))[:2000] if reason else None
        given = str(status).upper()
        if given not in {"FINISHED", "FAILED", "KILLED"}:
            why = f"finish was called with status {shown(status, 80)}" + (f": {why}" if why else "")
            given = "FAILED"
        if self._journal.lost:
            self._journal.free_reserve()
        self._journal.report_loss()
        if self._refused:
            self._journal.append_last(Tags(now_ms(), {"unified_tracker.refused": str(self._refused)}))
        self._journal.append_last(Finished(now_ms(), cast("Status", given), why))

    def _refuse(self, call: str, *reasons: str, error: Exception | None = None) -> None:
        """Count what was refused, warn once for each kind, raise for those who want it."""
        if call != "journal":
            self._refused += len(reasons)
        with contextlib.suppress(Exception):  # a warning that cannot be given is no reason to fail
            for why in reasons:
                kind = f"{call}:{type(error).__name__ if error else why.partition(':')[0]}"
                if kind not in self._warned and len(self._warned) < WARNINGS:
                    self._warned.add(kind)
                    say(f"{call}: {mask_text(why)}")
        if reasons and self._on_error == "raise":
            raise _RefusedError(f"{call}: {mask_text('; '.join(reasons[:5]))}") from error

    def _pulse(self) -> None:
        """Every two seconds: restart a dead uploader, pass on what the lanes have to say. Costs two small reads."""
        self._next_pulse_ns = time.monotonic_ns() + int(PULSE_S * 1e9)
        if self._journal is not None:
            self._journal.report_loss()
        if self._watch is not None and self.active:
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                self._watch.look()


def status_of(error: BaseException | None) -> Status:
    """The status that an exception gives to a run."""
    if error is None:
        return "FINISHED"
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    if isinstance(error, SystemExit):
        if error.code in KILL_CODES:
            return "KILLED"
        return "FINISHED" if error.code in {None, 0} else "FAILED"
    return "FAILED"


def reason_of(error: BaseException | None) -> str | None:
    """One line about an exception; None if there is none."""
    return f"{type(error).__name__}: {error}" if error is not None else None


def _aliases(given: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(as_text, [given] if isinstance(given, str) else given)))


def _metadata(given: Mapping[str, Any] | None) -> dict[str, Any]:
    values = mask(plain(given or {}))
    return values if isinstance(values, dict) else {"metadata": values}


def _inactive(info: bytes) -> Run:
    return Run(msgspec.json.decode(info, type=RunInfo), None, None, None, "warn")
