"""A look at a server for `doctor`: one GET, answered within seconds or not at all. Standard library only."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

TIMEOUT_S: Final = 4.0
SKEW_S: Final = 60.0


class Answer(NamedTuple):
    """What came back. `status` is 0 if nothing did; `trouble` then says why."""

    status: int
    text: str = ""
    skew_s: float | None = None
    trouble: str = ""

    @property
    def clock(self) -> str:
        """How this machine's clock differs from the server's; "" if it does not, or nobody knows."""
        if self.skew_s is None or abs(self.skew_s) < SKEW_S:
            return ""
        word = "behind" if self.skew_s > 0 else "ahead of"
        return f"this machine's clock is {abs(self.skew_s):.0f} s {word} the server's"


class _Stay(urllib.request.HTTPRedirectHandler):
    """No redirect is followed: credentials go to the address that they are meant for."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def ask(url: str, headers: Mapping[str, str] | None = None, *, context: ssl.SSLContext | None = None) -> Answer:
    """GET a URL. Proxies are taken from the environment, as the backends' clients take them. Never raises."""
    handlers: list[urllib.request.BaseHandler] = [_Stay()]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    before = time.time()
    try:
        request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 -- checked: http or https
        with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as response:
            return _answer(response.status, response.read(4096), response.headers.get("Date"), before)
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, error.read(4096), error.headers.get("Date"), before)
    except urllib.error.URLError as error:
        return Answer(0, trouble=_why(error.reason))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Answer(0, trouble=_why(error))


def reach(host: str, port: int) -> str:
    """Open and close a connection. Returns what is wrong; "" if nothing is."""
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S):
            return ""
    except (OSError, UnicodeError) as error:
        return _why(error)


def ssl_context(*, insecure: bool, bundle: str | None) -> ssl.SSLContext:
    """How certificates are checked: against the system's authorities, a file or folder of others, or not at all."""
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif bundle:
        context.load_verify_locations(
            cafile=None if os.path.isdir(bundle) else bundle, capath=bundle if os.path.isdir(bundle) else None
        )
    return context


def _answer(status: int, body: bytes, date: str | None, before: float) -> Answer:
    skew = None
    if date:
        try:
            skew = parsedate_to_datetime(date).timestamp() - (before + time.time()) / 2
        except ValueError:
            pass  # some proxies write dates of their own
    return Answer(status, body.decode("utf-8", "replace").strip(), skew)


def _why(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} s"
    text = str(reason) or type(reason).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", text)
