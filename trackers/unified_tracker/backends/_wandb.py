"""Weights & Biases as a backend: its options. Light, imports no wandb."""

from __future__ import annotations

import configparser
import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from unified_tracker._console import say
from unified_tracker._errors import ConfigurationError
from unified_tracker._settings import refuse_unknown
from unified_tracker._store import ArtifactStore
from unified_tracker._tracker import Address, Backend, Finding, RunInfo, Tracker
from unified_tracker.hookspecs import hookimpl
from unified_tracker.records import Entry, Status

OPTIONS: Final = frozenset({"entity", "mode", "group", "job_type", "dir", "run_id", "base_url", "names"})
OLD_NAMES: Final = "mmdet2"
MODES: Final = {
    "online": "online",
    "run": "online",
    "shared": "online",  # several writers of one run are not needed: the lane is the only one
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
HOSTS: Final = ("api.forge.coreweave.com", "api.wandb.ai")  # the same service; keys may be filed under either name


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the options.

    * `entity`, `group`, `job_type`: as `wandb.init` takes them; default `$WANDB_ENTITY` and so on.
    * `mode`: "online", "offline" or "disabled" (nothing is recorded); default `$WANDB_MODE`, then `wandb offline`'s
      setting, else online if there is a key, else offline, which is said in one line.
    * `dir`: an offline run is written to `<dir>/wandb/offline-run-*`; default `$WANDB_DIR`, else the working folder.
    * `base_url`: the server, if it is not the hosted service; default `$WANDB_BASE_URL`.
    * `run_id`: a W&B run to join; default `$WANDB_RUN_ID`, else a run of our own. A run that is active in this process
      can be written by this process alone: ours becomes its neighbour in the same group, which is said in one line.

    * `names`: "mmdet2" offers models, predictions and validation data also under the names that `MMDetWandbHook` of
      MMDetection 2.x gave them: `run_<run id>_model`, `run_<run id>_pred`, `val`. Each is an artifact of its own, with
      one reference a file and none of the bytes. Online only.

    Beside these the result holds what the environment says about the run (`project`, `name`, `notes`, `tags`), so that
    a later `sync` from another shell does the same. It holds no key.
    """
    refuse_unknown(options, OPTIONS, where="options of 'wandb'")
    for key, value in options.items():
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise ConfigurationError(f"options of 'wandb': {key} must be a string, not {value!r}")
    if options.get("names") not in {None, OLD_NAMES}:
        raise ConfigurationError(f"options of 'wandb': names must be {OLD_NAMES!r}, not {options['names']!r}")
    folder = options.get("dir") or os.environ.get("WANDB_DIR")
    checked: dict[str, Any] = {
        "mode": None,
        "entity": options.get("entity") or os.environ.get("WANDB_ENTITY"),
        "group": options.get("group") or os.environ.get("WANDB_RUN_GROUP"),
        "job_type": options.get("job_type") or os.environ.get("WANDB_JOB_TYPE"),
        "dir": str(Path(folder).expanduser().absolute()) if folder else None,
        "run_id": options.get("run_id") or os.environ.get("WANDB_RUN_ID"),
    }
    if options.get("names"):
        checked["names"] = options["names"]
    for key in ("project", "name", "notes", "tags", "base_url"):
        if value := options.get(key) or os.environ.get(f"WANDB_{key.upper()}"):
            checked[key] = value
    settings = _settings_files(Path(checked["dir"] or Path.cwd()))
    mode = _asked_mode(options.get("mode"), settings)
    if not options.get("run_id"):
        mode = _beside_active_run(checked, mode)
    if mode is None:
        mode = "online" if _has_key(checked.get("base_url") or settings.get("base_url"), settings) else "offline"
        if mode == "offline":
            say(
                "wandb: no API key found ($WANDB_API_KEY, netrc): recording offline. "
                "After `wandb login` the run can be uploaded; options={'wandb': {'mode': 'offline'}} silences this"
            )
    checked["mode"] = mode
    return checked


def create(run: RunInfo, run_dir: Path, options: Mapping[str, Any]) -> Tracker:
    """Make the tracker. Imports wandb, unless the mode is "disabled"."""
    if options.get("mode") == "disabled":
        return DisabledTracker()
    from unified_tracker.backends._wandb_tracker import WandbTracker

    return WandbTracker(run, run_dir, options)


def diagnose(options: Mapping[str, Any]) -> list[Finding]:
    """Look at the server, the key and the folder that the options name."""
    from unified_tracker.backends import _wandb_check  # HTTP and SSL: not for a training

    settings = _settings_files(Path(options.get("dir") or Path.cwd()))
    base_url = options.get("base_url") or settings.get("base_url")
    return _wandb_check.diagnose(options, base_url or f"https://{HOSTS[0]}", has_key=_has_key(base_url, settings))


def going_online(run_dir: Path, options: Mapping[str, Any]) -> AbstractContextManager[dict[str, Any]]:
    """Prepare an offline run for delivery from its journal."""
    from unified_tracker.backends import _wandb_online

    settings = _settings_files(Path(options.get("dir") or Path.cwd()))
    if not _has_key(options.get("base_url") or settings.get("base_url"), settings):
        raise ConfigurationError("W&B takes the run only with a key: `wandb login`, or set WANDB_API_KEY")
    return _wandb_online.going_online(run_dir, options)


def store(options: Mapping[str, Any]) -> ArtifactStore:
    """What the server holds or, in offline mode, what runs on this machine have recorded.

    Raises:
        ConfigurationError: The mode is "disabled", or there is no key.
    """
    if options.get("mode") == "disabled":
        raise ConfigurationError("W&B is disabled (mode): nothing can be read from it; set WANDB_MODE to 'online'")
    if options.get("mode") == "offline":
        from unified_tracker.backends._wandb_offline_store import OfflineStore

        return OfflineStore(options)
    settings = _settings_files(Path(options.get("dir") or Path.cwd()))
    base_url = options.get("base_url") or settings.get("base_url")
    if not _has_key(base_url, settings):  # before W&B's client asks for one in the terminal
        raise ConfigurationError("W&B is asked only with a key: `wandb login`, or set WANDB_API_KEY")
    from unified_tracker.backends._wandb_artifact_store import WandbStore  # imports wandb

    return WandbStore({**options, "base_url": base_url})


@hookimpl
def tracker_backend() -> Backend:
    """Offer Weights & Biases."""
    return Backend(
        name="wandb",
        check=check,
        create=create,
        requires=("wandb",),
        install='pip install "unified-tracker[wandb]"',
        diagnose=diagnose,
        going_online=going_online,
        store=store,
    )


class DisabledTracker:
    """`WANDB_MODE=disabled`: takes everything and keeps nothing. The journal still has it."""

    rebuilds = False

    def open(self, run: RunInfo) -> Address:
        return Address(run.id, "nowhere (W&B is disabled)")

    def log_metrics(self, entries: Sequence[Entry]) -> None:
        """Ignore."""

    def log_params(self, entries: Sequence[Entry]) -> None:
        """Ignore."""

    def set_tags(self, entries: Sequence[Entry]) -> None:
        """Ignore."""

    def log_media(self, entry: Entry, file: Path) -> None:
        """Ignore."""

    def log_artifact(self, entry: Entry, files: Mapping[str, Path]) -> None:
        """Ignore."""

    def held(self) -> int:
        return 0

    def close(self, status: Status, ended_ms: int) -> None:
        """Ignore."""


def _asked_mode(option: object, settings: Mapping[str, str]) -> str | None:
    """The mode that somebody has asked for; None if nobody has."""
    for source, value in (
        ("options of 'wandb': mode", option),
        ("$WANDB_MODE", os.environ.get("WANDB_MODE")),
        ("W&B's settings file: mode", settings.get("mode")),
    ):
        if value:
            if str(value).lower() not in MODES:
                raise ConfigurationError(f"{source} must be 'online', 'offline' or 'disabled', not {value!r}")
            return MODES[str(value).lower()]
    return None


def _beside_active_run(checked: dict[str, Any], mode: str | None) -> str | None:
    """If the training process has a W&B run open, make ours its neighbour: same project, same group, own id."""
    active = getattr(sys.modules.get("wandb"), "run", None)  # only if the user has imported it
    if active is None or getattr(active, "disabled", False):
        return mode
    group = checked["group"] or active.group or active.id
    checked.update(
        run_id=None,
        group=group,
        project=active.project or checked.get("project"),
        entity=checked["entity"] or active.entity or None,
    )
    say(
        f"wandb: run {active.id} is active in this process, and no other process can write to it: "
        f"this run is recorded as one of its own, in the same group {group!r}"
    )
    return mode or ("offline" if active.offline else None)


def _settings_files(folder: Path) -> dict[str, str]:
    """What `wandb login --host`, `wandb offline` and `wandb init` have stored: for the user, then for the folder."""
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or Path("~/.config/wandb").expanduser())
    found: dict[str, str] = {}
    for path in (home / "settings", folder / "wandb" / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
            found.update(parser.items("default"))
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # not there, or damaged: wandb itself reports that
    return found


def _has_key(base_url: str | None, settings: Mapping[str, str]) -> bool:
    """True if wandb would find credentials. Looks where wandb looks; asks nobody."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.get("api_key"):
        return True
    host = urlsplit(base_url).netloc if base_url else HOSTS[0]
    given = os.environ.get("NETRC")
    for path in [Path(given).expanduser()] if given else [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]:
        try:
            entries = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        for name in HOSTS if host in HOSTS else (host,):
            found = entries.authenticators(name)
            if found and found[2]:
                return True
    return False
