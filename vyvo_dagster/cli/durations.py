"""Durations as arguments: 90s, 10m, 2h, 7d."""

import re
from typing import Any, Final

import click

__all__ = ["Duration"]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FORM: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)?")


class Duration(click.ParamType[int]):
    """Whole seconds, or a number with s, m, h or d.

    Args:
        most: the longest, in seconds.
        least: the shortest.
    """

    name = "duration"

    def __init__(self, most: int, least: int = 1) -> None:
        self._most, self._least = most, least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        found = _FORM.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no duration, such as 90s, 10m or 2h", param, ctx)
        length = int(found[1]) * _UNITS[found[2] or "s"]
        if not self._least <= length <= self._most:
            most = f"{self._most // 86400}d" if self._most % 86400 == 0 else f"{self._most}s"
            self.fail(f"{value} is not between {self._least}s and {most}", param, ctx)
        return length
