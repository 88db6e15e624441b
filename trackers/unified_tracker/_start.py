"""`start_run`: settings in, an open run out. Everything that can be wrong with a configuration is raised here."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from unified_tracker import _pending, _settings
from unified_tracker._console import say
from unified_tracker._environment import Environment, process_rank
from unified_tracker._errors import ConfigurationError
from unified_tracker._journal import Journal, now_ms
from unified_tracker._launcher import UploaderProcess
from unified_tracker._mask import (
    learn_variables,
    mask,
    mask_command,
    mask_text,
    split_userinfo,
    whole_uri_variable,
)
from unified_tracker._run import OnError, Run
from unified_tracker._rundir import PARENT, RunDirectory, find_runs, new_run_id
from unified_tracker._tracker import RunInfo
from unified_tracker.records import Started


def start_run(
    tracker: _settings.TrackerChoice = None,
    *,
    project: str | None = None,
    name: str | None = None,
    description: str | None = None,
    tags: Mapping[str, Any] | Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
    dir: str | Path | None = None,  # noqa: A002 -- fixed name, the same as W&B's
    options: Mapping[str, Mapping[str, Any]] | None = None,
    id: str | None = None,  # noqa: A002 -- the same as W&B's
    on_error: OnError | None = None,
    rank: int | None = None,
) -> Run:
    """Start recording a training, or go on with one.

    Args:
        tracker: "mlflow", "wandb", the name of any installed plugin, a list of names, or "off". None takes
            `$UNIFIED_TRACKER`, else `tracker:` in `tracker.yaml` of the working folder, else "mlflow".
            `UNIFIED_TRACKER=off` wins over everything.
        project: MLflow experiment, W&B project.
        name, description, tags: As the backend shows them.
        config: Parameters, recorded as by `Run.log_params`.
        dir: The run directory is made below it, as `unified-tracker/<run id>`. Default: the working folder.
        options: Backend name to its options.
        id: Identity of an earlier run that goes on in this one; its directory need not exist on this machine.
        on_error: "warn" (default) or "raise": whether log calls raise for what they cannot record.
        rank: Rank of this process in the training; None takes `$RANK`. Ranks above 0 get a run that records nothing.

    Returns:
        The run: a context manager; an exception marks it FAILED and is raised again. With tracking off, a run whose
        calls do nothing.

    Blocking: a few milliseconds; no backend is asked. The uploader is started as a separate process.

    Raises:
        ConfigurationError: Unknown backend or option, missing package, broken plugin, unwritable directory.
    """
    settings = RunSettings.resolve(
        tracker,
        project=project,
        name=name,
        description=description,
        tags=tags,
        dir=dir,
        options=options,
        on_error=on_error,
    )
    return settings.open(config=config, id=id, rank=rank)


@dataclass(frozen=True)
class RunSettings:
    """Everything that `start_run` decides before it opens anything.

    Adapters resolve on every rank, where a wrong configuration ends every process alike, and open on rank 0.

    Attributes:
        backends: Backend name to checked options; empty means that tracking is off.
        secrets: Credentials taken out of URIs, for the uploader's environment only.
    """

    working: Path
    parent: Path
    project: str | None
    name: str | None
    description: str | None
    tags: dict[str, str]
    on_error: OnError
    backends: dict[str, dict[str, Any]]
    secrets: dict[str, str] = field(repr=False)

    @classmethod
    def resolve(
        cls,
        tracker: _settings.TrackerChoice = None,
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        **given: Any,
    ) -> RunSettings:
        """Settle the arguments of `start_run` with the environment and `tracker.yaml`. Opens nothing.

        Raises:
            ConfigurationError: As `start_run`.
        """
        working = Path.cwd()
        learn_variables()
        values = _settings.read_file(working)
        values.update({key: value for key, value in given.items() if value is not None})
        names = _settings.choose(tracker, values)
        on_error: OnError = values.get("on_error") or "warn"
        if on_error not in {"warn", "raise"}:
            raise ConfigurationError(f"on_error must be 'warn' or 'raise', not {on_error!r}")
        backends, secrets = checked_backends(names, _merged_options(values.get("options") or {}, options or {}))
        return cls(
            working=working,
            parent=Path(values.get("dir") or working).absolute() / PARENT,
            project=values.get("project"),
            name=values.get("name"),
            description=mask_text(str(values["description"])) if values.get("description") else None,
            tags=_tags(values.get("tags")),
            on_error=on_error,
            backends=backends,
            secrets=secrets,
        )

    def for_evaluation(self) -> RunSettings:
        """The same for a run that only evaluates: a backend with an option `job_type` shows it, unless it is set."""
        backends = {
            name: {**options, "job_type": options["job_type"] or "eval"} if "job_type" in options else options
            for name, options in self.backends.items()
        }
        return replace(self, backends=backends)

    def latest_run(self) -> str | None:
        """Identity of the newest run in the same folder; None if there is none. For frameworks that lost it."""
        runs = [directory.path.name for directory in find_runs(self.parent)]
        return runs[-1] if runs else None

    def open(
        self,
        *,
        config: Mapping[str, Any] | None = None,
        id: str | None = None,  # noqa: A002 -- as in `start_run`
        rank: int | None = None,
    ) -> Run:
        """Make the run directory, start the uploader, return the run.

        Raises:
            ConfigurationError: The directory cannot be written, or another process writes to this run.
        """
        info = RunInfo(
            id=id or new_run_id(),
            project=self.project,
            name=self.name,
            description=self.description,
            tags=self.tags,
            created_ms=now_ms(),
            cwd=str(self.working),
            command=mask_command([sys.executable, *sys.argv]),
            backends=self.backends,
        )
        if not self.backends or (process_rank() if rank is None else rank) > 0:
            return Run(info, None, None, None, self.on_error)
        if os.name == "nt":
            raise ConfigurationError("recording is not supported on Windows yet; tracker='off' lets the training run")
        directory = RunDirectory(self.parent / info.id)
        try:
            info = _continued(directory, info)
            directory.create(info)
            if not directory.lock_writer():
                raise ConfigurationError(
                    f"run {info.id} in {directory.path} is being written by another process; use another dir or id"
                )
            journal = Journal(directory.journal)
        except OSError as error:
            raise ConfigurationError(f"run directory {directory.path} cannot be written: {error}") from error
        uploader = UploaderProcess(directory.path, directory.uploader_log, self.working, self.secrets)
        run = Run(info, directory, journal, uploader, self.on_error)
        journal.append(Started(now_ms(), journal.attempt, os.getpid(), info.name, info.description, info.tags))
        try:
            uploader.start()
        except OSError as error:
            say(f"the uploader cannot be started ({error}); everything is kept in {directory.path}")
        _pending.remember(directory.path)  # while the uploader starts
        environment = Environment.collect()
        run.log_params({**environment.params(), **(config or {})})
        run.set_tags(environment.tags())
        atexit.register(run.finish_at_exit)
        _announce(info, directory)
        self._deliver_leftovers(info.id)
        return run

    def _deliver_leftovers(self, running: str) -> None:
        """Start the uploader for earlier runs in the same folder that a crash has left undelivered."""
        for directory in find_runs(self.parent):
            if directory.path.name == running:
                continue
            states = [directory.lane_state(backend) for backend in directory.info().backends]
            if any(state is None or not state.done for state in states):
                leftover = UploaderProcess(directory.path, directory.uploader_log, self.working, self.secrets)
                try:
                    leftover.start()
                finally:
                    leftover.forget()


def _continued(directory: RunDirectory, info: RunInfo) -> RunInfo:
    """A run that goes on keeps what is fixed about it; backends may be added."""
    try:
        before = directory.info()
    except (FileNotFoundError, msgspec.MsgspecError):
        return info
    return msgspec.structs.replace(
        info,
        project=before.project,
        name=info.name or before.name,
        description=info.description or before.description,
        tags={**before.tags, **info.tags},
        created_ms=before.created_ms,
        backends={**before.backends, **info.backends},
    )


def checked_backends(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    from unified_tracker import _plugins  # pluggy and the metadata of all distributions: not at import

    checked: dict[str, dict[str, Any]] = {}
    secrets: dict[str, str] = {}
    installed = _plugins.installed()
    backends = {name: _plugins.load(name, installed) for name in names}
    for name in options:
        if name not in installed:
            raise ConfigurationError(f"options for {name!r}, which is no installed backend: {', '.join(installed)}")
    for name, backend in backends.items():
        _plugins.require(backend)
        own = backend.check(dict(options.get(name, {})))
        for key, value in own.items():
            if not isinstance(value, str):
                continue
            own[key], user, password = split_userinfo(value)
            if user is not None and value.startswith("http"):
                secrets[f"{name.upper()}_TRACKING_USERNAME"] = user
                secrets[f"{name.upper()}_TRACKING_PASSWORD"] = password or ""
            elif password is not None:  # of a database: there is no variable for it alone
                secrets[whole_uri_variable(name, key)] = value
        checked[name] = own
    return checked, secrets


def _merged_options(*sources: object) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for source in sources:
        if not isinstance(source, Mapping) or not all(isinstance(value, Mapping) for value in source.values()):
            raise ConfigurationError(f"options must map a backend's name to its options, not {source!r}")
        for name, values in source.items():
            merged.setdefault(str(name), {}).update(values)
    return merged


def _announce(info: RunInfo, directory: RunDirectory) -> None:
    label = f"{info.name!r} " if info.name else ""
    project = f" in {info.project!r}" if info.project else ""
    where = "; ".join(_place(backend, options) for backend, options in info.backends.items())
    say(f"run {label}{info.id}{project} -> {where}; journal in {shlex.quote(str(directory.path))}")


def _place(backend: str, options: Mapping[str, Any]) -> str:
    words = [mask_text(value) for value in options.values() if isinstance(value, str)]
    return f"{backend} ({', '.join(words)})" if words else backend


def _tags(given: object) -> dict[str, str]:
    """Tags as a mapping; a list of words, as W&B takes it, becomes words with empty values."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {str(key): str(mask(str(value), str(key))) for key, value in given.items()}
    if isinstance(given, Sequence):
        words = [given] if isinstance(given, str) else given
        return {str(word): "" for word in words}
    raise ConfigurationError(f"tags must be a mapping or a list of words, not {given!r}")
