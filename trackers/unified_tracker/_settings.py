"""Which backends, with which options: argument, `$UNIFIED_TRACKER`, `tracker.yaml`, default, in this order."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from unified_tracker._errors import ConfigurationError

VARIABLE: Final = "UNIFIED_TRACKER"
FILE: Final = "tracker.yaml"
OFF: Final = "off"
DEFAULT: Final = "mlflow"
FILE_KEYS: Final = frozenset({"tracker", "project", "name", "description", "tags", "dir", "options", "on_error"})

TrackerChoice = str | Sequence[str] | None


def choose(tracker: TrackerChoice, from_file: Mapping[str, Any]) -> list[str]:
    """Names of the backends to use; empty means that tracking is off.

    `UNIFIED_TRACKER=off` wins over everything, so that any script can be run untracked.

    Raises:
        ConfigurationError: The choice is no name and no list of names.
    """
    environment = os.environ.get(VARIABLE, "").strip()
    if environment.lower() == OFF:
        return []
    for source, value in (
        ("tracker", tracker),
        (f"${VARIABLE}", environment or None),
        (FILE, from_file.get("tracker")),
    ):
        if value is not None:
            return _names(source, value)
    return [DEFAULT]


def read_file(folder: Path) -> dict[str, Any]:
    """The settings in `tracker.yaml` of a folder; empty when there is none.

    Raises:
        ConfigurationError: The file is not YAML, no mapping, or has a key that is not a setting.
    """
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    import yaml  # only where there is such a file

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a mapping such as 'tracker: mlflow', not {type(content).__name__}")
    refuse_unknown(content, FILE_KEYS, where=str(path))
    return content


def options_of(backend: str, folder: Path) -> dict[str, Any]:
    """The options of a backend in `tracker.yaml` of a folder; empty when there are none."""
    options = (read_file(folder).get("options") or {}).get(backend) or {}
    return dict(options) if isinstance(options, Mapping) else {}


def refuse_unknown(given: Collection[str], known: Collection[str], *, where: str) -> None:
    """Raise a `ConfigurationError` that names the first unknown key and the nearest known one."""
    for key in given:
        if key not in known:
            import difflib  # only for the message: keeps `import unified_tracker` light

            near = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ConfigurationError(f"{where}: unknown option {key!r}; {hint}")


def _names(source: str, value: object) -> list[str]:
    if value is False:  # YAML 1.1, in every configuration file, reads a bare `off` as false
        return []
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise ConfigurationError(f"{source}: a backend's name or a list of names is expected, not {value!r}")
    names = list(dict.fromkeys(part.strip().lower() for part in parts if part.strip()))
    if OFF in names:
        if len(names) > 1:
            raise ConfigurationError(f"{source}: 'off' cannot stand beside other backends: {value!r}")
        return []
    if not names:
        raise ConfigurationError(f"{source}: no backend named; use a name, a list of names, or 'off'")
    return names
