"""Pruning: which versions of a model a backend need not keep, and their removal there.

Never removed: what a name points to ("latest", "best", "best-bbox.AP", a name of the user's), what another run was made
from, the newest ones, and every m-th step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from unified_tracker._store import ArtifactStore
from unified_tracker._versions import ArtifactVersion

POSITION: Final = re.compile(r"(epoch|iter)_\d+(\.\d+)?")  # says where a version is from, and asks for nothing


def superfluous(
    versions: Sequence[ArtifactVersion], last: int, every: int, is_needed: Callable[[ArtifactVersion], bool]
) -> list[ArtifactVersion]:
    """Versions that may go, oldest first.

    Args:
        versions: All of one model.
        last: How many of the newest are kept, at least one.
        every: Keep those whose step is a multiple of this; 0 for none of them.
        is_needed: Whether another run, or a registry, needs a version. Asked last, and only about the others.
    """
    by_age = sorted(versions, key=lambda each: (each.created_ms, each.step or 0))
    old = by_age[: -max(last, 1)]
    return [
        each
        for each in old
        if all(POSITION.fullmatch(alias) for alias in each.aliases)
        and not (every and each.step is not None and each.step % every == 0)
        and not is_needed(each)
    ]


def prune(store: ArtifactStore, name: str, last: int, every: int = 0) -> list[ArtifactVersion]:
    """Remove from a backend what of a model need not be kept; gives what was removed.

    Raises:
        TrackerError: The backend does not answer, or refuses. What was removed until then is gone.
    """
    gone = superfluous(
        list(store.versions(type="model", name=name)),
        last,
        every,
        lambda version: store.is_registered(version) or bool(store.users(version)),
    )
    for version in gone:
        store.delete(version)
    return gone
