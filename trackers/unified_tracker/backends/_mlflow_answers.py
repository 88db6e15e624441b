"""What an MLflow server answered: status and Retry-After, which MLflow's exceptions do not carry.

MLflow lets urllib3 raise for 429 and 5xx, which throws the answer away, the server's own explanation with it. Here, in
the lane's process, `requests` hands such an answer on, MLflow raises with its text, and the worst one is remembered.

A request that has timed out may take longer next time: a server that is only slow would otherwise never be done with
it.
"""

from __future__ import annotations

import datetime
import email.utils
import threading
import time
from typing import Any, Final, NamedTuple

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import ReadTimeout
from urllib3.exceptions import ReadTimeoutError


class Answer(NamedTuple):
    """A refusing answer."""

    status: int
    retry_after_s: float | None = None


class Answers:
    """Remembers the last answer with a status of 400 or more. Uploads use several threads: they share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Answer | None = None

    def forget(self) -> None:
        """A new call begins."""
        with self._lock:
            self._last = None

    def last(self) -> Answer | None:
        """The last refusing answer since `forget`."""
        with self._lock:
            return self._last

    def note(self, response: Response) -> None:
        """Remember a response if it refuses."""
        if response.status_code >= 400:
            answer = Answer(response.status_code, retry_after_s(response.headers.get("Retry-After")))
            with self._lock:
                self._last = answer


def retry_after_s(header: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for: it is a number or a date."""
    if not header:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    return max((moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds(), 0.0)


class Patience:
    """How many times the configured limit a request may take: up to four times while a server is slow."""

    MOST: Final = 4

    def __init__(self) -> None:
        self.factor = 1

    def limit(self, timeout: Any) -> Any:
        """The limit to use instead of the configured one."""
        return timeout * self.factor if isinstance(timeout, (int, float)) else timeout

    def timed_out(self) -> None:
        """Nothing came in time."""
        self.factor = min(2 * self.factor, self.MOST)

    def answered(self, seconds: float, timeout: Any) -> None:
        """An answer came; one that came soon shows that the trouble is over."""
        if isinstance(timeout, (int, float)) and seconds < timeout / 4:
            self.factor = max(self.factor // 2, 1)


answers: Final = Answers()
patience: Final = Patience()
_send = HTTPAdapter.send


def _noting_send(
    self: HTTPAdapter, request: PreparedRequest, stream: bool = False, timeout: Any = None, **more: Any
) -> Response:
    if not self.max_retries.total:  # nothing is repeated here: the lane does that
        self.max_retries = self.max_retries.new(raise_on_status=False)
    began = time.monotonic()
    try:
        response = _send(self, request, stream, patience.limit(timeout), **more)
    except RequestsConnectionError as error:
        if isinstance(getattr(error.args[0] if error.args else None, "reason", None), ReadTimeoutError):
            patience.timed_out()
        raise
    except ReadTimeout:
        patience.timed_out()
        raise
    patience.answered(time.monotonic() - began, timeout)
    answers.note(response)
    return response


HTTPAdapter.send = _noting_send  # type: ignore[assignment, method-assign]
