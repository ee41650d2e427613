"""Text for a terminal: tables, ages, and nothing that a stranger's text could do to it."""

import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self, TextIO

__all__ = ["LiveLine", "age", "plain", "seconds", "table"]


def plain(text: object) -> str:
    """`text` without what moves a cursor or colours: control and format characters."""
    return "".join(
        " " if c in "\t\n\r" else c for c in str(text)
        if c in "\t\n\r" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    )  # fmt: skip


def seconds(value: float | None) -> str:
    """A duration as people say it: 0.42 s, 37 s, 12 min, 3.5 h, 2 d."""
    if value is None:
        return "-"
    for limit, divisor, unit, digits in (
        (10, 1, "s", 2), (120, 1, "s", 0), (7200, 60, "min", 0), (172800, 3600, "h", 1),
    ):  # fmt: skip
        if value < limit:
            return f"{value / divisor:.{digits}f} {unit}"
    return f"{value / 86400:.0f} d"


def age(since: datetime | None, until: datetime | None = None) -> str:
    """Time from `since` to `until`, or to now."""
    if since is None:
        return "-"
    return seconds(max(((until or datetime.now(UTC)) - since).total_seconds(), 0.0))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need to be, two spaces apart."""
    cells = [list(head), *([plain(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


class LiveLine:
    """One line that is written over on a terminal; elsewhere a line for each change."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stderr if out is None else out
        self._live = self._out.isatty()
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._live and self._shown:
            self._write("\n")

    def show(self, text: str, *, step: bool = True) -> None:
        """Show a state. `step` False: a detail that only a terminal needs to see."""
        text = plain(text)
        if text == self._shown or not (self._live or step):
            return
        self._shown = text
        if self._live:
            columns = max(shutil.get_terminal_size().columns, 20)
            self._write(f"\r\x1b[2K{text[: columns - 1]}")
        else:
            self._write(f"{text}\n")

    def above(self, text: str) -> None:
        """Print a line that stays."""
        if self._live:
            self._write(f"\r\x1b[2K{plain(text)}\n{self._shown}")
        else:
            self._write(f"{plain(text)}\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
