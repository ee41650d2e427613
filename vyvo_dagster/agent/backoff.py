"""How long to wait before something is tried again."""

import random

__all__ = ["Backoff"]


class Backoff:
    """Delays that double up to a longest one, each shortened at random by up to a half.

    The chance keeps a thousand agents from coming back at the same moment.

    Args:
        first, longest: seconds.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = min(first, longest)
        self._longest = longest
        self._delay = self._first

    def next(self) -> float:
        """Seconds to wait now."""
        delay, self._delay = self._delay, min(self._delay * 2, self._longest)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - no secret hangs on it

    def reset(self) -> None:
        """It worked: begin anew."""
        self._delay = self._first
