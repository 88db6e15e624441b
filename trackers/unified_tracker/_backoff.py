"""Back-off: how long to wait before the next try. Full jitter, capped, for ever."""

from __future__ import annotations

import os
import random
from typing import Final, Protocol

CAP_VARIABLE: Final = "UNIFIED_TRACKER_RETRY_CAP_S"
FIRST_S: Final = 0.5
CAP_S: Final = 60.0
ASKED_CAP_S: Final = 600.0


class Clock(Protocol):
    """Time, so that tests can pass their own."""

    def monotonic(self) -> float:
        """Seconds, never going back."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


class Backoff:
    """Waiting times of consecutive failures; `reset` after a success."""

    def __init__(self, rng: random.Random | None = None, cap_s: float = CAP_S) -> None:
        self._rng = rng or random.Random()  # noqa: S311 -- jitter, not a secret
        self._cap_s = cap_s
        self.failures = 0

    @classmethod
    def of_environment(cls) -> Backoff:
        """With the longest wait that `$UNIFIED_TRACKER_RETRY_CAP_S` names."""
        return cls(cap_s=float(os.environ.get(CAP_VARIABLE, CAP_S)))

    def next_s(self, asked_s: float | None = None) -> float:
        """Seconds until the next try; what the backend asked for (`Retry-After`) goes first."""
        self.failures += 1
        if asked_s is not None:
            return min(asked_s, ASKED_CAP_S)
        ceiling = min(self._cap_s, FIRST_S * 2.0 ** min(self.failures - 1, 16))
        return self._rng.uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """The last try succeeded."""
        self.failures = 0
