"""When those who wait are told of it: at once, and then seldom."""

import time
from collections.abc import Callable
from typing import Final

__all__ = ["Waits"]

_CHANGED_SECONDS: Final = 15.0
_SAME_SECONDS: Final = 300.0


class Waits:
    """What waits, for what reason, and whether that is worth a line in a log.

    A reason that changes is told at most every quarter of a minute, one that stays every five
    minutes: a log is read by people, and a step may wait for days.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, tuple[str, float]] = {}
        self._waiting: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._waiting

    def note(self, name: str, reason: str) -> bool:
        """`name` waits; whether `reason` is to be told now."""
        self._waiting.add(name)
        now = self._clock()
        told, at = self._told.get(name, ("", 0.0))
        if told and now - at < (_SAME_SECONDS if told == reason else _CHANGED_SECONDS):
            return False
        self._told[name] = (reason, now)
        return True

    def end(self, name: str) -> None:
        """`name` waits no more."""
        self._waiting.discard(name)
        self._told.pop(name, None)
