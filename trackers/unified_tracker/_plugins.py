"""The plugin host: the only module that touches pluggy. Plugins are listed from metadata and loaded by name."""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import pluggy

from unified_tracker import hookspecs
from unified_tracker._errors import (
    BackendNotFoundError,
    BackendUnavailableError,
    ConfigurationError,
    PluginError,
)
from unified_tracker._tracker import Backend

SPEC_MARK: Final = f"{hookspecs.GROUP}_spec"  # by which pluggy recognises a specification
KNOWN: Final = {
    "mlflow": 'pip install "unified-tracker[mlflow]"',
    "wandb": 'pip install "unified-tracker[wandb]"',
}


def installed() -> dict[str, list[EntryPoint]]:
    """Entry points of the group, by name. Imports no plugin. More than one for a name is an error on use."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=hookspecs.GROUP):
        known = found.setdefault(point.name, [])
        if not any(_origin(point) == _origin(other) for other in known):
            known.append(point)
    return found


def load(name: str, among: dict[str, list[EntryPoint]] | None = None) -> Backend:
    """Import the plugin that offers a backend.

    Args:
        name: The backend's name.
        among: What `installed` has returned, for callers that load several: looking takes 15 ms.

    Raises:
        BackendNotFoundError: No distribution offers it.
        PluginError: The plugin does not import, offers the name twice, misspells a hook or returns something else.
    """
    points = installed() if among is None else among
    candidates = points.get(name, [])
    if not candidates:
        missing = {known: command for known, command in KNOWN.items() if known not in points}
        raise BackendNotFoundError(name, list(points), missing)
    if len(candidates) > 1:
        owners = " and ".join(sorted(_origin(point) for point in candidates))
        raise PluginError(f"tracker backend {name!r} is offered by {owners}: uninstall one of them")
    point = candidates[0]
    try:
        module = point.load()
    except Exception as error:
        raise PluginError(
            f"tracker backend {name!r} of {_origin(point)} does not import: {type(error).__name__}: {error}"
        ) from error
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        hooks = ", ".join(sorted(name for name, member in vars(hookspecs).items() if hasattr(member, SPEC_MARK)))
        raise PluginError(f"plugin {name!r} of {_origin(point)} is not valid (hooks: {hooks}): {error}") from error
    try:
        offers = manager.hook.tracker_backend()
    except Exception as error:
        raise PluginError(
            f"plugin {name!r} of {_origin(point)}: tracker_backend() failed: {type(error).__name__}: {error}"
        ) from error
    if len(offers) != 1 or not isinstance(offers[0], Backend) or offers[0].name != name:
        raise PluginError(
            f"plugin {name!r} of {_origin(point)}: tracker_backend() must return one Backend named {name!r}, "
            f"it returned {offers!r}"
        )
    return offers[0]


def require(backend: Backend) -> None:
    """Check that what a backend needs is installed, without importing it.

    Raises:
        BackendUnavailableError: A package is missing; the text says what to install.
    """
    for package in backend.requires:
        try:
            there = importlib.util.find_spec(package) is not None
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"package {package!r} cannot be looked up: {error}") from error
        if not there:
            raise BackendUnavailableError(backend.name, package, backend.install)


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
