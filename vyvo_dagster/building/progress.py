"""BuildKit's progress (`--progress rawjson`) as log lines with step names and fields.

Each line of it is one `SolveStatus` of BuildKit's client (client/graph.go): what changed of
vertexes (steps), of statuses (transfers) and of logs (what steps print, base64).
"""

import base64
import binascii
import json
import re
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, cast

from vyvo_dagster.building.masking import CUT
from vyvo_dagster.building.process import Shown

__all__ = ["RawProgress"]

_ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
# The command, which is the step's name already.
_COMMAND: Final = re.compile(
    r"executor failed running \[.*\]: |process \".*\" did not complete successfully: "
)
_NAMES: Final = (
    (re.compile(r"\[(\d+/\d+)\] .*", re.DOTALL), r"\1"),
    (re.compile(r"\[[^\]]*?(\d+/\d+)\] .*", re.DOTALL), r"\1"),
    (re.compile(r"\[internal\] load .*"), "load"),
    (re.compile(r"(?:exporting|importing|pushing|writing|naming|unpacking)\b.*"), "export"),
)
_TOLD_EVERY_SECONDS: Final = 5.0
_LINE_CHARS: Final = 1 << 20
_NAME_CHARS: Final = 120
_WHY_CHARS: Final = 300
_LAST_LINES: Final = 4
_UNITS: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


class RawProgress:
    """One build's progress, line by line.

    A vertex (`[2/6] RUN ...`) becomes a step named by its number in the Dockerfile; what it prints
    is logged under that step, without colours, which its fields keep. Fields of a line:

    - `{"event": "started" | "cached" | "done" | "error", "vertex", "seconds"}` of a step;
    - `{"event": "transfer", "id", "current", "total", "done"}` of layers and context, bytes;
    - `{"event": "output", "stream": 1 or 2, "ansi"}` of what a step prints; `ansi` where it has any.

    `pushing` turns true once layers travel to the registry.
    """

    def __init__(self, default_step: str = "image") -> None:
        self._default = default_step
        self._steps: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        self._shown_at: dict[tuple[str, str], float] = {}
        self._printed: dict[tuple[str, int], str] = {}
        self._open: list[str] = []
        self._last: dict[str, deque[str]] = {}
        self.pushing = False
        self.failure: str | None = None
        """The step that failed first, why, and the last that it printed; in a line."""

    def __call__(self, line: str) -> list[Shown]:
        """What one printed line says."""
        text = self._collected(line)
        if text is None:
            return []
        if not text.startswith("{"):
            return [(self._default, text)]
        try:
            status = cast("dict[str, Any]", json.loads(text))
        except ValueError:
            return [] if CUT in text else [(self._default, text)]
        found: list[Shown] = []
        # What a step printed before its end is told first.
        vertexes = cast("list[dict[str, Any]]", status.get("vertexes") or [])
        for vertex in vertexes:
            found += self._started(vertex)
        for item in status.get("logs") or []:
            found += self._output(item)
        for item in status.get("statuses") or []:
            found += self._transfer(item)
        for vertex in vertexes:
            found += self._ended(vertex)
        for warning in status.get("warnings") or []:
            text = _decoded(warning.get("short"))
            found.append((self._step(warning), f"WARNING: {text}", {"event": "warning"}))
        return found

    def _collected(self, line: str) -> str | None:
        """An object, which some versions of buildx print over several lines, or a line that is none."""
        if self._open and line.startswith((" ", "}")):
            self._open.append(line)
            if line != "}":
                return None
            text = "".join(self._open)
            self._open.clear()
            return text
        self._open.clear()
        if line == "{":
            self._open.append(line)
            return None
        return line

    def _step(self, item: Mapping[str, Any]) -> str:
        return self._steps.get(str(item.get("vertex")), self._default)

    def _once(self, vertex: str, what: str) -> bool:
        """Whether this is said for the first time: BuildKit repeats itself."""
        if (vertex, what) in self._told:
            return False
        self._told.add((vertex, what))
        return True

    def _started(self, vertex: Mapping[str, Any]) -> list[Shown]:
        digest, name = str(vertex.get("digest")), str(vertex.get("name") or "")
        if digest not in self._steps:
            self._steps[digest] = self._name(name)
        if name.startswith("pushing ") and vertex.get("started"):
            self.pushing = True
        if not (vertex.get("started") or vertex.get("error")) or not self._once(digest, "started"):
            return []
        shown = " ".join(name.split()) or "(no name)"
        return [(self._steps[digest], shown, {"event": "started", "vertex": digest})]

    def _ended(self, vertex: Mapping[str, Any]) -> list[Shown]:
        digest = str(vertex.get("digest"))
        step = self._steps[digest]
        if not (vertex.get("completed") or vertex.get("error")):
            return []
        found = [shown for stream in (1, 2) for shown in self._rest(digest, stream)]
        if not self._once(digest, "ended"):
            return found
        fields: dict[str, Any] = {"vertex": digest, "seconds": _seconds(vertex)}
        if error := vertex.get("error"):
            why = " ".join(_plain(str(error)).split())
            name = " ".join(str(vertex.get("name") or "").split())
            if self.failure is None and "context canceled" not in why:
                shown = [name if len(name) <= _NAME_CHARS else name[:_NAME_CHARS] + "..."]
                shown.append(_COMMAND.sub("", why)[:_WHY_CHARS])
                self.failure = ": ".join(
                    [*shown, *([" | ".join(last)] if (last := self._last.get(digest)) else [])]
                )
            text = f"ERROR: {why}"
            return [*found, (step, text, {"event": "error", **fields})]
        if vertex.get("cached"):
            return [*found, (step, "CACHED", {"event": "cached", **fields})]
        return [*found, (step, f"DONE {fields['seconds']:.1f}s", {"event": "done", **fields})]

    def _transfer(self, status: Mapping[str, Any]) -> list[Shown]:
        key = (str(status.get("vertex")), str(status.get("id")))
        if key[1].startswith("pushing "):
            self.pushing = True
        done = bool(status.get("completed"))
        now = _time(status.get("timestamp"))
        if done:
            if not self._once(*key):
                return []
        elif now - self._shown_at.setdefault(key, now) < _TOLD_EVERY_SECONDS:
            return []
        self._shown_at[key] = now
        current, total = int(status.get("current") or 0), int(status.get("total") or 0)
        size = f" {_size(current)}" if current else ""
        of = f" / {_size(total)}" if total and not done else ""
        fields = {
            "event": "transfer",
            "id": key[1],
            "current": current,
            "total": total,
            "done": done,
        }
        return [(self._step(status), f"{key[1]}{size}{of}{' done' if done else ''}", fields)]

    def _output(self, item: Mapping[str, Any]) -> list[Shown]:
        digest, stream = str(item.get("vertex")), int(item.get("stream") or 1)
        text = self._printed.pop((digest, stream), "") + _decoded(item.get("data"))
        *lines, rest = text.split("\n")
        if len(rest) > _LINE_CHARS:
            rest = rest[:_LINE_CHARS] + CUT
        if rest:
            # The rest of a line that is too long is dropped with it.
            self._printed[digest, stream] = rest
        return [shown for line in lines for shown in self._line(digest, stream, line)]

    def _rest(self, digest: str, stream: int) -> list[Shown]:
        return self._line(digest, stream, self._printed.pop((digest, stream), ""))

    def _line(self, digest: str, stream: int, line: str) -> list[Shown]:
        if CUT in line:
            line = line[: line.index(CUT)] + CUT
        # A progress bar redraws its line with \r: only the last drawing counts.
        raw = line.rstrip("\r").rsplit("\r", 1)[-1]
        text = _plain(raw)
        if not text.strip():
            return []
        self._last.setdefault(digest, deque(maxlen=_LAST_LINES)).append(text.strip()[:_NAME_CHARS])
        fields: dict[str, Any] = {"event": "output", "stream": stream}
        if text != raw and len(raw) < _LINE_CHARS:
            fields["ansi"] = raw
        return [(self._steps.get(digest, self._default), text, fields)]

    def _name(self, text: str) -> str:
        for pattern, name in _NAMES:
            if match := pattern.fullmatch(text):
                return match.expand(name)
        return self._default


def _plain(text: str) -> str:
    return _ANSI.sub("", text)


def _decoded(data: Any) -> str:
    try:
        return base64.b64decode(str(data or "")).decode(errors="replace")
    except (binascii.Error, ValueError):
        return ""


def _time(stamp: Any) -> float:
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return 0.0


def _seconds(vertex: Mapping[str, Any]) -> float:
    if not (vertex.get("started") and vertex.get("completed")):
        return 0.0
    return round(max(_time(vertex["completed"]) - _time(vertex["started"]), 0.0), 3)


def _size(n: int) -> str:
    for unit, name in _UNITS:
        if n >= unit:
            return f"{n / unit:.2f}{name}"
    return f"{n}B"
