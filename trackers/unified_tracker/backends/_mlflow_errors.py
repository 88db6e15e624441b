"""Sorting MLflow's errors: what to try again and what is refused for good."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, TypeVar, cast

import mlflow

from unified_tracker._errors import DeliveryError, RejectedError, TransientError
from unified_tracker._mask import mask_text

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

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


def sorted_errors(call: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A tracker method whose errors are `TransientError` or `RejectedError`."""

    @functools.wraps(call)
    def checked(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(self, *args, **kwargs)
        except DeliveryError:
            raise
        except mlflow.MlflowException as error:
            text = mask_text(str(error))
            if error.error_code in REFUSALS:
                raise RejectedError(text) from error
            raise TransientError(text) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise RejectedError(f"{type(error).__name__}: {mask_text(str(error))}") from error
        except OSError as error:  # requests' exceptions are OSErrors too
            raise TransientError(f"{type(error).__name__}: {mask_text(str(error))}") from error

    return cast("Callable[Concatenate[S, P], T]", checked)
