"""The W&B tracker. Runs in the lane's process only; the modules beside it are its parts."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

# First: it sets what wandb looks at when it is imported.
from unified_tracker.backends._wandb_settings import settings  # isort: split

import wandb
from wandb.sdk.data_types.utils import val_to_json  # what `log` does with a picture or table, without logging a row

from unified_tracker._backoff import Clock
from unified_tracker._errors import DeliveryError, TransientError
from unified_tracker._naming import Renamer
from unified_tracker._tracker import Address, RunInfo
from unified_tracker.backends import _wandb_values as values
from unified_tracker.backends._wandb import OLD_NAMES
from unified_tracker.backends._wandb_errors import clean, opening_error, sorted_errors
from unified_tracker.backends._wandb_files import RunFiles
from unified_tracker.backends._wandb_inputs import RunInputs
from unified_tracker.backends._wandb_media import media
from unified_tracker.backends._wandb_memory import Memory
from unified_tracker.backends._wandb_receipts import ENDED, ReadBack, Receipts, Report
from unified_tracker.backends._wandb_recorded import Recorded
from unified_tracker.backends._wandb_store import Store
from unified_tracker.backends._wandb_versions import Draft, Versions
from unified_tracker.records import Artifact, Entry, Input, Media, Metrics, Params, Predictions, Status, Tags

if TYPE_CHECKING:
    from unified_tracker.backends._wandb_predictions import PredictionLog
    from unified_tracker.predictions._report import PredictionReport

FOLDER: Final = "wandb"  # in the run directory: memory, wandb's data and cache
EXIT_CODES: Final[dict[Status, int]] = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}
ASK_S: Final = 15.0  # between two questions to the server: W&B's client sends rows about as often
STALL_S: Final = 600.0  # the server answers, but nothing of what was sent arrives: W&B's client has given up silently
LAGS_S: Final = (0.0, 1.0, 3.0)  # a service may see its own rows a little late

_log = logging.getLogger("unified_tracker.wandb")


class WandbTracker:
    """Weights & Biases, online or as a genuine offline run.

    Online, what counts as held is what the server reports when it is asked: W&B's client drops everything after one
    answer of 400, 404 or 409 to its stream of rows, and finishes as if nothing had happened. The server is asked at
    most every `ASK_S`, and at the end; what is not there then is sent again by a new process.

    One row for each `Metrics` or `Media` record; W&B's own step counts them in the order of the journal, so that a
    replay gives the same step to the same row: online, W&B then drops what it has; offline, the folder of the try that
    was cut short is removed and written anew. The training's step is the axis `trainer/step`.

    Attributes:
        rebuilds: The tracker must be given the journal from its start, whatever it has vouched for: an offline run is
            one file, which nobody can continue. Read before `open`.
        needs_files: An offline run refers to the files of its artifacts: `wandb sync` reads them, some day.
        broken: Why the W&B run cannot be used any more.
    """

    def __init__(self, run: RunInfo, run_dir: Path, options: Mapping[str, Any], *, clock: Clock = time) -> None:
        self._options, self._clock = options, clock
        self._offline = options.get("mode") == "offline"
        self._own, self._id, self._run_dir = run_dir / FOLDER, run.id, run_dir
        self._store, self._memory = Store(self._own), Memory.read(self._own)
        self.rebuilds: bool = self._offline and self._memory.rebuilds
        self.needs_files = self._offline
        self.broken: str | None = None
        self._run: Any = None
        self._metrics = Renamer(values.metric_name, 10_000)
        self._published = 0
        told = Memory() if self.rebuilds else self._memory
        self._told = told.told  # parameters up to here are in the configuration
        self._config, self._changed, self._tags = dict(told.config), list(told.changed), dict(told.tags)
        self._names: dict[str, Any] = dict(told.names)
        self._inputs = RunInputs(None, told.inputs, offline=self._offline)
        self._foreign_tags: list[str] = []
        self._step: int | None = None
        self._server_step = 0
        self._logged: set[tuple[int, tuple[str, ...]]] = set()
        self._versions: Versions
        self._files: RunFiles
        self._predictions: PredictionLog | None = None
        self._recorded: Recorded | None = None
        self._dataset: tuple[int, Draft] | None = None
        self._server: ReadBack | None = None
        self._receipts = Receipts(0)
        self._ask_at = self._stalls_at = 0.0
        self._sequence = self._held = 0
        self._closed = False
        self._prepare()

    # ---- opening -----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Keep wandb out of the home folder: what it stages for an upload stays with the run, wherever it is copied."""
        self._own.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ.setdefault("WANDB_DATA_DIR", str(self._own))
        os.environ.setdefault("WANDB_CACHE_DIR", str(self._own / "cache"))
        if base_url := self._options.get("base_url"):
            os.environ["WANDB_BASE_URL"] = base_url
        if not self._offline:
            os.environ["WANDB_DIR"] = str(self._own)  # the public API makes empty folders there

    def open(self, run: RunInfo) -> Address:
        root = self._root(run)
        self._tear_down()  # an earlier tracker of this process may have left the run open: wandb allows it once
        if self._offline:
            self._memory.forget_folder()
            self._memory.write(self._own)
        try:
            self._run = wandb.init(
                id=self._options.get("run_id") or run.id,
                resume=None if self._offline else "allow",
                project=values.project_name(run.project or self._options.get("project") or ""),
                entity=self._options.get("entity"),
                name=run.name or self._options.get("name"),
                notes=run.description or self._options.get("notes"),
                group=self._options.get("group"),
                job_type=self._options.get("job_type"),
                reinit="create_new",
                settings=settings(mode="offline" if self._offline else "online", root_dir=str(root)),
            )
            return self._opened(run)
        except BaseException as error:
            self._tear_down()
            if isinstance(error, Exception):
                raise opening_error(error) from error
            raise

    def _opened(self, run: RunInfo) -> Address:
        if self._offline:
            self._memory.folder = str(Path(self._run.dir).parent)
        else:
            self._server_step = int(self._run.starting_step)  # the server has every row before this one
            if self._memory.first_step is None:  # rows that are there are another's, unless `wandb sync` brought ours
                ours = self._memory.folder is not None or self._memory.kept
                self._memory.first_step = 0 if ours else self._server_step
            if not self._run.entity:
                raise TransientError("W&B has not said whose run it is")
            self._server = ReadBack(self._run.entity, self._run.project, self._run.id)
            self._receipts = Receipts(self._server.report().lines)
            self._ask_at = self._clock.monotonic() + ASK_S
            self._stalls_at = self._clock.monotonic() + STALL_S
        self._memory.write(self._own)
        self._files = RunFiles(self._run, self._receipts, self._server, self._clock)
        self._versions = Versions(self._run, offline=self._offline, clock=self._clock)
        self._predictions = None
        self._inputs = RunInputs(self._run, self._inputs.plain, offline=self._offline)
        if self._offline:
            self._recorded = Recorded(
                run,
                self._run_dir,
                run=self._run.id,
                entity=self._options.get("entity") or "",
                project=self._run.project,
            )
        self._run.define_metric(values.AXIS)
        self._run.define_metric("*", step_metric=values.AXIS)
        given = str(self._options.get("tags") or "").split(",")
        self._foreign_tags = [*(self._run.tags or ()), *(tag.strip() for tag in given)]
        self._update_config({**self._config, "unified_tracker/run_id": run.id})
        if self._changed:
            self._update_config({"unified_tracker/changed_params": self._changed})
        if self._names:
            self._update_config({"unified_tracker/names": self._names})
        self._update_config(self._inputs.config())
        self._apply_tags(run.tags)
        if not self._offline:
            return Address(self._run.id, self._run.url)
        folder = str(self._memory.folder)
        earlier = [shlex.quote(kept) for kept in self._memory.kept]
        return Address(self._run.id, folder, f"wandb sync {' '.join([*earlier, shlex.quote(folder)])}")

    def _root(self, run: RunInfo) -> Path:
        """Where wandb makes its `wandb` folder; checked, since wandb silently goes to /tmp when it cannot write."""
        root = Path(self._options.get("dir") or (run.cwd if self._offline else self._own))
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TransientError(f"W&B's folder {root} cannot be made: {error}") from error
        if not os.access(root, os.W_OK | os.R_OK | os.X_OK):
            raise TransientError(f"W&B's folder {root} cannot be written")
        return root

    def _tear_down(self) -> None:
        """Leave no run and no service process of wandb in this process: `open` is called again after a failure."""
        self._run = None
        try:
            wandb.teardown(exit_code=1)
        except (Exception, SystemExit):  # noqa: BLE001 -- a service that has crashed would end us with its exit code
            _log.exception("wandb could not be shut down")

    # ---- records -----------------------------------------------------------------------------------------------

    @sorted_errors
    def log_metrics(self, entries: Sequence[Entry]) -> None:
        rows = []
        for entry in entries:
            record = entry.record
            assert isinstance(record, Metrics)  # noqa: S101 -- the lane groups by kind
            if record.values:
                row: dict[str, Any] = {self._metrics(name): value for name, value in record.values.items()}
                rows.append((entry, record.ts, record.step, row))
        self._publish_names()
        for entry, ts, step, row in rows:
            key = entry.sequence, tuple(row)  # a batch that was cut short comes again
            if key not in self._logged:
                self._log_row(entry, ts, step, row)
                self._logged.add(key)
        self._logged.clear()
        self._sent(entries[-1].sequence)

    @sorted_errors
    def log_params(self, entries: Sequence[Entry]) -> None:
        touched: dict[str, Any] = {}
        for entry in entries:
            record = entry.record
            assert isinstance(record, Params)  # noqa: S101 -- the lane groups by kind
            if entry.sequence <= self._told:
                continue
            given = values.nested(record.values)
            for name, before, after in values.merge(self._config, given):
                change = [name, before, after, record.ts]
                if change not in self._changed:
                    self._changed.append(change)
                touched["unified_tracker/changed_params"] = self._changed
            touched.update({key: self._config[key] for key in given})
        self._update_config(touched)
        self._publish_names()
        self._sent(entries[-1].sequence)

    @sorted_errors
    def set_tags(self, entries: Sequence[Entry]) -> None:
        tags: dict[str, str] = {}
        for entry in entries:
            record = entry.record
            assert isinstance(record, Tags)  # noqa: S101 -- the lane groups by kind
            tags.update(record.values)
        self._apply_tags(tags)
        self._publish_names()
        self._sent(entries[-1].sequence)

    @sorted_errors
    def log_media(self, entry: Entry, file: Path) -> None:
        record = entry.record
        assert isinstance(record, Media)  # noqa: S101 -- the lane sorts by kind
        name = self._metrics(record.name)
        self._publish_names()
        self._log_row(entry, record.ts, record.step, {name: media(record, file)}, files=True)
        self._sent(entry.sequence)

    @sorted_errors
    def log_predictions(self, entry: Entry, report: PredictionReport) -> None:
        record = entry.record
        assert isinstance(record, Predictions)  # noqa: S101 -- the lane sorts by kind
        if self._predictions is None:
            from unified_tracker.backends._wandb_predictions import PredictionLog  # for runs that have predictions

            names = self._options.get("names")
            self._predictions = PredictionLog(
                self._own, self._versions, self._run, offline=self._offline, old_names=names == OLD_NAMES
            )
        row_at = self._predictions.log(entry.sequence, report)
        row = row_at(f"{record.split}/predictions", self._step_of(entry))
        row = {self._metrics(name): value for name, value in row.items()}
        self._publish_names()
        self._log_row(entry, record.ts, record.step, row, files=True)
        self._sent(entry.sequence)

    @sorted_errors
    def log_artifact(self, entry: Entry, files: Mapping[str, Path]) -> None:
        record = entry.record
        assert isinstance(record, Artifact)  # noqa: S101 -- the lane sorts by kind
        if record.name is None:
            self._files.save(entry.sequence, files)
        else:
            deadline, draft = self._versions.deadline(), self._draft(entry.sequence, record, record.name, files)
            version = self._versions.log(entry.sequence, draft, deadline)
            if not self._offline and self._options.get("names") == OLD_NAMES and record.name == f"run-{self._id}-model":
                old = draft.as_references(f"run_{self._run.id}_model", version)
                self._versions.log(entry.sequence, old, deadline)
            if self._recorded is not None:
                self._recorded.version(entry, files, version.digest)
            if not self._offline:
                self._store.release(draft.files.values())
                self._dataset = None
        self._sent(entry.sequence)

    @sorted_errors
    def log_input(self, entry: Entry) -> None:
        record = entry.record
        assert isinstance(record, Input)  # noqa: S101 -- the lane sorts by kind
        self._inputs.add(record)
        self._update_config(self._inputs.config())
        if self._recorded is not None:
            self._recorded.inputs(self._inputs.inputs())
        self._inputs.use(record)
        self._sent(entry.sequence)

    @property
    def notes(self) -> list[str]:
        """Sentences for the user."""
        return [*self._inputs.notes, *(self._recorded.notes if self._recorded is not None else ())]

    def _draft(self, sequence: int, record: Artifact, name: str, files: Mapping[str, Path]) -> Draft:
        """What is to be logged. Of a data set with its table, which takes long: it is made once a record."""
        if record.type != "dataset" or "annotations.json" not in files:
            return Draft.of(record, name, files)
        if self._dataset is None or self._dataset[0] != sequence:
            from unified_tracker.backends._wandb_dataset import draft_dataset  # for runs that have data sets

            self._dataset = sequence, draft_dataset(record, name, files, self._store)
        return self._dataset[1]

    def held(self) -> int:
        """As the server last said; it is asked at most every `ASK_S`. Offline: 0 until the run is closed."""
        now = self._clock.monotonic()
        if self._server is None or self._closed or self.broken is not None or now < self._ask_at:
            return self._held
        try:
            before = self._held
            lines = self._confirm().lines
        except Exception as error:  # noqa: BLE001 -- nothing is lost by not knowing
            _log.warning("W&B does not say what it holds: %s", clean(f"{type(error).__name__}: {error}"))
            self._stalls_at = now + STALL_S
        else:
            if self._held > before or (lines >= self._receipts.lines and not self._receipts.pending_files()):
                self._stalls_at = now + STALL_S
            elif now >= self._stalls_at:
                self.broken = f"the server has {lines} of {self._receipts.lines} rows, and no more are arriving"
        self._ask_at = self._clock.monotonic() + ASK_S
        return self._held

    @sorted_errors
    def close(self, status: Status, ended_ms: int) -> None:
        if self._closed:
            return
        self._run.summary["unified_tracker/status"] = status
        self._update_config({"unified_tracker/status": status, "unified_tracker/ended_ms": ended_ms})
        try:
            self._run.finish(exit_code=EXIT_CODES[status])
            if self._server is not None:
                self._await_everything(ended_ms)
            wandb.teardown(exit_code=0)  # waits for the service: `finish` alone may return before the file is whole
        except (Exception, SystemExit) as error:  # the run cannot be finished twice: a new process replays it
            self.broken = clean(f"finishing the run failed: {type(error).__name__}: {error}")
            if isinstance(error, DeliveryError):
                raise
            raise TransientError(
                f"W&B has not confirmed the end of the run; it is sent again ({self.broken})"
            ) from error
        self._memory.complete = self._offline
        self._remember(self._sequence, self._step)
        self._held, self._closed = self._sequence, True

    # ---- what the server holds ---------------------------------------------------------------------------------

    def _sent(self, sequence: int) -> None:
        self._sequence = sequence
        if not self._offline:
            self._receipts.mark(sequence, self._step)

    def _confirm(self) -> Report:
        """Ask the server what it holds, and move `held` accordingly."""
        assert self._server is not None  # noqa: S101 -- online only
        report = self._server.report()
        if pending := self._receipts.pending_files():
            self._receipts.files_there(self._server.sizes(pending))
        if mark := self._receipts.reached(report.lines):
            self._remember(mark.sequence, mark.step)
            self._held = mark.sequence
        return report

    def _remember(self, sequence: int, step: int | None) -> None:
        """Before a record counts as held: what a process that starts behind it must know."""
        memory = self._memory
        if step is not None:
            memory.close_at(sequence, step)
        memory.config, memory.changed, memory.tags = self._config, self._changed, self._tags
        memory.names, memory.told = self._names, max(self._sequence, self._told)
        memory.inputs = self._inputs.plain
        memory.write(self._own)

    def _await_everything(self, ended_ms: int) -> None:
        """After `finish`: see that the server holds every row and file, the configuration, and the end.

        Raises:
            TransientError: It does not.
        """
        missing = ""
        for lag in LAGS_S:
            self._clock.sleep(lag)
            lines, state, config = self._confirm()
            pending = self._receipts.pending_files()
            if lines < self._receipts.lines:
                missing = f"{self._receipts.lines - lines} rows"
            elif pending:
                missing = f"{len(pending)} files, {min(pending)!r} first"
            elif config.get("unified_tracker/ended_ms") != ended_ms:
                missing = "the last configuration"
            elif state not in ENDED:
                missing = "the end of the run"
            else:
                return
        raise TransientError(f"W&B's client has finished, but its server lacks {missing}: sent again by a new process")

    # ---- inside ------------------------------------------------------------------------------------------------

    def _log_row(self, entry: Entry, ts: int, step: int | None, row: dict[str, Any], *, files: bool = False) -> None:
        own = self._step_of(entry)
        if step is not None:
            row[values.AXIS] = step
        row["_timestamp"] = ts / 1000
        if own >= self._server_step:
            self._run.log(row, step=own, commit=True)
            self._receipts.row()
        elif files:  # the server has the row, but its file may have been cut short: it goes again, under the same name
            for name, value in row.items():
                val_to_json(self._run, name, value, namespace=own)
        if files and self._server is not None:
            folder = Path(self._run.dir)
            for path in folder.glob(f"media/**/*_{own}_*"):
                self._receipts.file(path.relative_to(folder).as_posix(), path.stat().st_size)
        self._step = own + 1

    def _step_of(self, entry: Entry) -> int:
        """W&B's step of the row that comes next, which is this record's."""
        return self._memory.step_after(entry.sequence) if self._step is None else self._step

    def _update_config(self, changed: Mapping[str, Any]) -> None:
        if changed:
            self._run.config.update(dict(changed), allow_val_change=True)

    def _publish_names(self) -> None:
        """Names that had to be changed, with what they were, stand in the configuration."""
        names = {**self._metrics.changed(), **values.config_keys.changed()}
        if len(names) > self._published:
            self._published = len(names)
            self._names.update({mapped: values.plain(name) for mapped, name in names.items()})
            self._update_config({"unified_tracker/names": self._names})

    def _apply_tags(self, tags: Mapping[str, str]) -> None:
        self._tags.update(tags)
        words = [word for word in self._foreign_tags if word and word.partition(":")[0] not in self._tags]
        self._run.tags = tuple(dict.fromkeys([*words, *values.run_tags(self._tags)]))
        self._update_config({values.tag_key(key): values.plain(value) for key, value in tags.items()})
