"""What `vyvo up` says while it starts, runs and stops: a line for each thing that happens."""

import contextlib
import re
import time
from typing import TextIO

__all__ = ["Report"]

_PASSWORD = re.compile(r"(?<=//)([^:/@]*):[^@/]*@")


class Report:
    """Lines such as `[ 1.9s] postgres    ready   postgresql://vyvo@127.0.0.1:20711/vyvo  0.9 s`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def part(self, name: str, word: str, detail: str = "", seconds: float | None = None) -> None:
        """Say that something happened to a part; passwords in URLs are left out."""
        took = "" if seconds is None else f"  {seconds:.1f} s"
        shown = _PASSWORD.sub(lambda m: f"{m[1]}@" if m[1] else "", detail)
        line = f"[{self.elapsed:5.1f}s] {name:<13} {word:<8} {shown}{took}"
        self.text(line.rstrip())

    def text(self, text: str) -> None:
        """Say something as it is."""
        # A terminal or a reader that is gone must not keep the stack from being stopped.
        with contextlib.suppress(OSError, ValueError):
            print(text, file=self._out, flush=True)
