"""BuildKit's plain progress as log lines with step names."""

import re
from typing import Final

__all__ = ["PlainProgress"]

_LINE: Final = re.compile(r"#(\d+) (.*)")
_TIME: Final = re.compile(r"\d+\.\d+ (.*)")
# "pushing layer 4793 4.82MB / 190.84MB 0.2s": redrawn twice a second, of interest when done.
_TRANSFER: Final = re.compile(r".* [\d.]+[kKMG]?B / [\d.]+[kKMG]?B.* [\d.]+s")
_NAMES: Final = (
    (re.compile(r"\[(\d+/\d+)\] .*"), r"\1"),
    (re.compile(r"\[[^\]]*?(\d+/\d+)\] .*"), r"\1"),
    (re.compile(r"\[internal\] load .*"), "load"),
    (re.compile(r"(?:exporting|importing|pushing|writing|naming|unpacking)\b.*"), "export"),
)


class PlainProgress:
    """One build's `--progress=plain` output, line by line.

    A vertex (`#5 [2/6] RUN ...`) becomes a step named by its number in the Dockerfile; what it
    prints later is logged under that step. `pushing` turns true once layers travel.
    """

    def __init__(self, default_step: str = "image") -> None:
        self._default = default_step
        self._names: dict[str, str] = {}
        self.pushing = False

    def __call__(self, line: str) -> tuple[str, str] | None:
        """Step and text of one printed line, or None for a line that says nothing new."""
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            return self._default, line
        vertex, text = match.groups()
        if text.startswith("pushing "):
            self.pushing = True
        if vertex not in self._names:
            self._names[vertex] = self._name(text)
            return self._names[vertex], text
        step = self._names[vertex]
        if _TRANSFER.fullmatch(text):
            return None
        if timed := _TIME.fullmatch(text):
            text = timed.group(1)
        # BuildKit prints a vertex's name again when it returns to it.
        if not text.strip() or text.startswith("["):
            return None
        return step, text

    def _name(self, text: str) -> str:
        for pattern, name in _NAMES:
            if match := pattern.fullmatch(text):
                return match.expand(name)
        return self._default
