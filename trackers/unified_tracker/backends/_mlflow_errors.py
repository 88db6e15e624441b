"""Sorting MLflow's errors: what to try again and what is refused for good."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar, cast

import mlflow

from unified_tracker._errors import DeliveryError, RejectedError, TransientError
from unified_tracker._mask import mask_text
from unified_tracker.backends._mlflow_answers import Answer, answers

REFUSALS: Final = frozenset(
    {
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "MALFORMED_REQUEST",
        "RESOURCE_ALREADY_EXISTS",
        "INVALID_STATE",
        "NOT_IMPLEMENTED",
        "FEATURE_DISABLED",
    }
)
# MLflow's store passes every error of its database on as BAD_REQUEST, also one that is over in a minute.
DATABASE: Final = re.compile(r"QueuePool|\((sqlite3|psycopg2?|pymysql|MySQLdb|pyodbc)[\w.]*\.\w+\)|sqlalche\.me")
CREDENTIALS: Final = (
    "the server refuses the credentials (HTTP {status}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN, and run `unified-tracker sync`; everything is kept. {text}"
)


class _HasRun(Protocol):
    def gone(self) -> str | None:
        """Why the run takes nothing any more; None if it is not gone."""


P = ParamSpec("P")
S = TypeVar("S", bound=_HasRun)
T = TypeVar("T")


def sorted_errors(call: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A tracker method whose errors are `TransientError` or `RejectedError`.

    A refusal because the run itself was deleted is not the records' fault: it is transient, and says what mends it.
    """

    @functools.wraps(call)
    def checked(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        answers.forget()
        try:
            return call(self, *args, **kwargs)
        except DeliveryError:
            raise
        except Exception as error:
            found = sort(error, answers.last())
            if found is None:
                raise
            if (isinstance(found, RejectedError) or _not_found(error)) and (gone := self.gone()):
                found = TransientError(gone)
            raise found from error

    return cast("Callable[Concatenate[S, P], T]", checked)


def sort(error: Exception, answer: Answer | None) -> DeliveryError | None:
    """What an error means for the records; None for one that neither MLflow nor the network has raised."""
    text = mask_text(str(error))
    if not isinstance(error, mlflow.MlflowException):
        text = f"{type(error).__name__}: {text}"
    if answer is not None and answer.status in {401, 403}:
        return TransientError(CREDENTIALS.format(status=answer.status, text=text))
    if answer is not None and answer.status in {408, 429, 503}:
        return TransientError(text, answer.retry_after_s)
    if answer is not None and answer.status in {411, 413, 414, 415, 422}:
        return RejectedError(text)
    if isinstance(error, mlflow.MlflowException):
        if error.error_code in REFUSALS:
            return TransientError(text, suspect=True) if DATABASE.search(text) else RejectedError(text)
        # Without a server the store's own INTERNAL_ERROR is what HTTP 500 is with one.
        failed = error.error_code == "INTERNAL_ERROR" and not text.startswith("API request")
        return TransientError(text, suspect=failed if answer is None else answer.status >= 500)
    unreadable = isinstance(error, json.JSONDecodeError) or type(error).__module__.startswith("google.protobuf")
    if unreadable:  # something between us and the server has answered
        return TransientError(text)
    if isinstance(error, OSError):  # requests' exceptions are OSErrors too
        return TransientError(text, suspect=answer is not None and answer.status >= 500)
    if isinstance(error, (TypeError, ValueError, OverflowError)):
        return RejectedError(text)
    return None


def _not_found(error: Exception) -> bool:
    return isinstance(error, mlflow.MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
