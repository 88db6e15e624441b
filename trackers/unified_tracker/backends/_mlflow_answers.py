"""What an MLflow server answered: status and Retry-After, which MLflow's exceptions do not carry.

MLflow lets urllib3 raise for 429 and 5xx, which throws the answer away, the server's own explanation with it. Here, in
the lane's process, `requests` hands such an answer on, MLflow raises with its text, and the worst one is remembered.
"""

from __future__ import annotations

import datetime
import email.utils
import threading
from typing import Any, Final, NamedTuple

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter


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


answers: Final = Answers()
_send = HTTPAdapter.send


def _noting_send(self: HTTPAdapter, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
    if not self.max_retries.total:  # nothing is repeated here: the lane does that
        self.max_retries = self.max_retries.new(raise_on_status=False)
    response = _send(self, request, *args, **kwargs)
    answers.note(response)
    return response


HTTPAdapter.send = _noting_send  # type: ignore[method-assign]
