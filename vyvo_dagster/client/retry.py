"""When to try again, and how long to wait before. No I/O, so that both clients share it."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from vyvo_dagster.client.calls import Call

__all__ = ["RetryPolicy", "retry_after"]

_MAYBE_DONE: Final = 503
_AGAIN: Final = frozenset({429, _MAYBE_DONE})
# Nothing was sent: even a call that must not be repeated may be tried again.
_UNSENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that `Retry-After` asks for, in either of its forms; None where it is absent or wrong."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(float(value), 0.0) if value.strip().isdigit() else _until(value)
    except (TypeError, ValueError):
        return None


def _until(date: str) -> float:
    at = parsedate_to_datetime(date)
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max((at - datetime.now(UTC)).total_seconds(), 0.0)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently.

    Args:
        retries: tries after the first one; 0 never tries again.
        first: pause before the second try, in seconds; doubled each time, with jitter.
        longest: longest pause that is taken; a longer `Retry-After` ends the trying.
    """

    retries: int = 4
    first: float = 0.2
    longest: float = 30.0
    jitter: Callable[[], float] = random.random

    def after_answer(
        self, call: Call[object], tried: int, response: httpx.Response
    ) -> float | None:
        """Pause before the next try, None to take the answer as it is.

        429 says that nothing was done; 503 may come after a commit, so only a call that can be
        repeated is.
        """
        if response.status_code not in _AGAIN or tried > self.retries:
            return None
        if response.status_code == _MAYBE_DONE and not call.repeatable:
            return None
        asked = retry_after(response)
        if asked is None:
            return self._pause(tried)
        return None if asked > self.longest else asked + self.jitter() * self.first

    def after_error(
        self, call: Call[object], tried: int, error: httpx.TransportError
    ) -> float | None:
        """Pause before the next try, None to give up."""
        if tried > self.retries or not (call.repeatable or isinstance(error, _UNSENT)):
            return None
        return self._pause(tried)

    def after_failed_download(self, tried: int) -> float | None:
        """Pause before the next try, None to give up; reading again does no harm."""
        return None if tried > self.retries else self._pause(tried)

    def _pause(self, tried: int) -> float:
        return min(self.first * 2 ** (tried - 1), self.longest) * (0.5 + self.jitter() / 2)
