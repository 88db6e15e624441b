"""Hooks that a plugin may implement. An entry point of the group `unified_tracker` names the module that does.

    from unified_tracker.hookspecs import hookimpl

    @hookimpl
    def tracker_backend():
        return Backend(name="jsonlines", check=..., create=...)

The entry point has the name that users type::

    [project.entry-points.unified_tracker]
    jsonlines = "my_package.plugin"
"""

from __future__ import annotations

from typing import Final

import pluggy

from unified_tracker._tracker import Backend

GROUP: Final = "unified_tracker"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def tracker_backend() -> Backend:  # type: ignore[empty-body]  # a hook specification has no body
    """Offer a backend.

    Called in the training process (light: no SDK may be imported by it) and in the uploader.

    Returns:
        The backend; its name is the name of the entry point.
    """
