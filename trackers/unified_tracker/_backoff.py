"""Back-off: how long to wait before the next try. Full jitter, capped, for ever."""

from __future__ import annotations

import random
from typing import Final

FIRST_S: Final = 0.5
CAP_S: Final = 60.0
ASKED_CAP_S: Final = 600.0


class Backoff:
    """Waiting times of consecutive failures; `reset` after a success."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 -- jitter, not a secret
        self.failures = 0

    def next_s(self, asked_s: float | None = None) -> float:
        """Seconds until the next try; what the backend asked for (`Retry-After`) goes first."""
        self.failures += 1
        if asked_s is not None:
            return min(asked_s, ASKED_CAP_S)
        ceiling = min(CAP_S, FIRST_S * 2.0 ** min(self.failures - 1, 16))
        return self._rng.uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """The last try succeeded."""
        self.failures = 0
