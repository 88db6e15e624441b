"""Names: making any name acceptable to a backend, injectively, with the original recoverable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable


class Renamer:
    """Maps names to what a backend accepts; the same name always to the same result, two names never to one.

    A name that is acceptable stays as it is. A changed one gets a suffix of eight hex digits of its hash, so that
    "AR@100" and "AR#100" stay apart, also from a metric that is really called "AR_100".
    """

    def __init__(self, allowed: Callable[[str], str], limit: int) -> None:
        """Set the rule.

        Args:
            allowed: Returns a name with everything replaced that the backend refuses.
            limit: Longest name that the backend takes.
        """
        self._allowed, self._limit = allowed, limit
        self._known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """The name to use in the backend."""
        if name not in self._known:
            self._known[name] = self._map(name)
        return self._known[name]

    def changed(self) -> dict[str, str]:
        """Mapped name to original, for every name that had to be changed so far."""
        return {mapped: name for name, mapped in self._known.items() if mapped != name}

    def _map(self, name: str) -> str:
        clean = self._allowed(name)
        if name and clean == name and len(name) <= self._limit:
            return name
        suffix = "-" + hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        return (clean[: self._limit - len(suffix)].rstrip("/. ") or "name") + suffix


def path_like(name: str) -> str:
    """For MLflow: letters, digits, `_ - . space /`, and a path that is its own normal form."""
    parts = [re.sub(r"[^\w\-. ]", "_", part).strip() for part in name.split("/")]
    return "/".join(part for part in parts if part and part not in {".", ".."})
