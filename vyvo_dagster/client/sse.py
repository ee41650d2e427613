"""Server-sent events out of lines of text, by the WHATWG rules that our streams use."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["ServerSentEvent", "parse"]


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event; `data` is decoded JSON."""

    id: str
    event: str
    data: Any


def parse(lines: Iterable[str]) -> Iterator[ServerSentEvent]:
    """Events of a stream's lines (without their ends); comments and empty events are passed over."""
    id_, event, data = "", "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield ServerSentEvent(id_, event, json.loads("\n".join(data)))
            event, data = "message", []
            continue
        if line.startswith(":"):
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            id_ = value
        elif field == "event":
            event = value
        elif field == "data":
            data.append(value)
