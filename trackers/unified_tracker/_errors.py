"""Errors, one class for each thing that a caller would do differently.

::

    TrackerError
    ├── ConfigurationError (ValueError)     raised before training: mend the call or the configuration
    │   ├── BackendNotFoundError            no installed distribution offers the backend
    │   ├── BackendUnavailableError         the backend is known, its client package is not installed
    │   └── PluginError                     a plugin distribution is broken
    ├── RecordError (ValueError)            one value cannot be recorded; raised with on_error="raise" only
    └── DeliveryError                       raised by trackers, handled by the uploader
        ├── TransientError                  try the same again later
        └── RejectedError                   never for these records: bisect, set the culprit aside
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class TrackerError(Exception):
    """Root of everything that this library raises on purpose."""


class ConfigurationError(TrackerError, ValueError):
    """Tracking is configured wrongly. Raised before training; nothing was recorded."""


class BackendNotFoundError(ConfigurationError):
    """No installed distribution offers the requested backend."""

    def __init__(self, name: str, installed: Sequence[str], known: Mapping[str, str]) -> None:
        super().__init__(name, tuple(installed), dict(known))
        self.name, self.installed, self.known = name, tuple(sorted(installed)), dict(known)

    def __str__(self) -> str:
        installed = ", ".join(self.installed) or "none"
        added = "; ".join(f"{command} adds {name}" for name, command in sorted(self.known.items()))
        hint = f". {added}" if added else ""
        return f"no tracker backend named {self.name!r} (installed: {installed}; 'off' turns tracking off){hint}"


class BackendUnavailableError(ConfigurationError):
    """The backend is known, but a package that it needs is not installed."""

    def __init__(self, name: str, missing: str, install: str) -> None:
        super().__init__(name, missing, install)
        self.name, self.missing, self.install = name, missing, install

    def __str__(self) -> str:
        return f"tracker backend {self.name!r} needs the package {self.missing!r}: {self.install}"


class PluginError(ConfigurationError):
    """A plugin distribution is broken; the text names it."""


class RecordError(TrackerError, ValueError):
    """A value cannot be recorded. The rest of the call was recorded."""


class DeliveryError(TrackerError):
    """A tracker could not deliver. Raised by backends only; the uploader decides what follows."""


class TransientError(DeliveryError):
    """The backend cannot take it now: server away, time-out, HTTP 408, 429, 5xx.

    Attributes:
        retry_after_s: Seconds that the backend asked for, or None.
        suspect: The backend is there, but failed at these records (HTTP 500): they may be to blame. If it goes on
            while the tracker's `canary` gets through, they count as rejected.
    """

    def __init__(self, message: str, retry_after_s: float | None = None, *, suspect: bool = False) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s
        self.suspect = suspect

    def __str__(self) -> str:
        return str(self.args[0])


class RejectedError(DeliveryError):
    """The backend will never take these records as they are."""
