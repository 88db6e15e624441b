"""Sorting wandb's errors: what to try again, what is refused for good, and when its service process is gone."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

import wandb

from unified_tracker._errors import DeliveryError, RejectedError, TransientError
from unified_tracker._mask import mask_text

NO_KEY: Final = (
    "W&B needs a valid key: run `wandb login`, or set WANDB_API_KEY and run `unified-tracker sync`; "
    "nothing is dropped meanwhile"
)
GONE: Final = frozenset({"MailboxClosedError", "HandleAbandonedError", "ServerResponseError"})  # they have moved often

NO_ANSWER: Final = "WandbApiFailedError"  # the service lives, W&B does not answer; it has no public name


class HasTrouble(Protocol):
    """A tracker that knows that its W&B run cannot be used any more, and why."""

    broken: str | None


P = ParamSpec("P")
S = TypeVar("S", bound=HasTrouble)
T = TypeVar("T")


def sorted_errors(call: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A tracker method whose errors are `TransientError` or `RejectedError`.

    wandb's service process cannot be replaced under an open run. When it is gone, the first call says so, as a
    `TransientError`; the next one ends this process: the uploader starts it anew, and the journal is replayed.
    """

    @functools.wraps(call)
    def checked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.broken is not None:
            raise SystemExit(f"W&B's client cannot go on and is started anew: {self.broken}")
        try:
            return call(self, *args, **kwargs)
        except DeliveryError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {clean(str(error))}"
            if type(error).__name__ in GONE or isinstance(error, (ConnectionError, wandb.errors.UsageError)):
                self.broken = text
                raise TransientError(f"W&B's client has stopped ({text})") from error
            if isinstance(error, (OSError, wandb.errors.CommError)) or type(error).__name__ == NO_ANSWER:
                raise TransientError(text) from error
            if isinstance(error, (TypeError, ValueError, OverflowError)):
                raise RejectedError(text) from error
            raise

    return checked


def opening_error(error: BaseException) -> TransientError:
    """What is wrong with `wandb.init`, with what mends it."""
    text = clean(str(error))
    if isinstance(error, wandb.errors.AuthenticationError) or "API key" in text:
        return TransientError(f"{NO_KEY} ({text})")
    return TransientError(f"W&B cannot open the run: {type(error).__name__}: {text}")


def is_missing(error: BaseException) -> bool:
    """Whether W&B has said that there is no such thing. Its API wraps that, as it wraps a server that is away."""
    return isinstance(getattr(error, "exc", None) or error, ValueError)


@contextlib.contextmanager
def suppress_missing() -> Iterator[None]:
    """Go on where W&B has no such thing; any other error of its API is raised."""
    try:
        yield
    except (ValueError, wandb.errors.CommError) as error:
        if not is_missing(error):
            raise


def clean(text: str) -> str:
    """A text without credentials, on one line."""
    key = os.environ.get("WANDB_API_KEY")
    if key:
        text = text.replace(key, "***")
    return " ".join(mask_text(text).split())
