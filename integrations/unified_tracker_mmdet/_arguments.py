"""`init_kwargs`: the arguments of `wandb.init`, as 2.x configurations have them, translated into ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from unified_tracker import ConfigurationError

RUN: Final = {
    "project": "project",
    "name": "name",
    "notes": "description",
    "description": "description",
    "tags": "tags",
    "dir": "dir",
}
WANDB: Final = ("entity", "group", "job_type", "mode")
RUN_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")


@dataclass(frozen=True)
class InitArguments:
    """What `init_kwargs` comes to.

    Attributes:
        run: Arguments of `RunSettings.resolve`.
        options: Backend name to its options.
        config: Additional parameters.
        id: Identity of the run; None lets the library choose.
        ignored: Keys without a meaning here.
    """

    run: dict[str, Any]
    options: dict[str, dict[str, Any]]
    config: dict[str, Any]
    id: str | None
    ignored: tuple[str, ...]


def read_init_kwargs(
    init_kwargs: Mapping[str, Any] | None, options: Mapping[str, Mapping[str, Any]] | None
) -> InitArguments:
    """Sort the arguments of `wandb.init`.

    `resume` needs no word: a training that is resumed goes on as the same run. `options` goes before `init_kwargs`.

    Raises:
        ConfigurationError: The arguments are no mapping, or `id` cannot be the name of a folder.
    """
    given = dict(_mapping("init_kwargs", init_kwargs))
    given.pop("resume", None)
    run_id = given.pop("id", None)
    if run_id is not None and not RUN_ID.fullmatch(str(run_id)):
        raise ConfigurationError(f"init_kwargs: id must be letters, digits, '-', '_' and '.', not {run_id!r}")
    config = given.pop("config", None)
    run = {RUN[key]: given.pop(key) for key in list(given) if key in RUN}
    wandb = {key: given.pop(key) for key in WANDB if key in given}
    merged = {name: dict(values) for name, values in _mapping("options", options).items()}
    if wandb:
        merged["wandb"] = {**wandb, **merged.get("wandb", {})}
    return InitArguments(
        run=run,
        options=merged,
        config=dict(config) if isinstance(config, Mapping) else {},
        id=str(run_id) if run_id is not None else None,
        ignored=tuple(sorted(given)),
    )


def _mapping(name: str, value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be a dict, not {value!r}")
    return value
