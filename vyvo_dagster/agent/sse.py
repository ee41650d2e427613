"""Server-sent events, read from bytes (WHATWG HTML, section 9.2.6).

Lines end at LF, CR LF or CR only. Text-level line splitting also breaks at U+2028 and U+0085,
which JSON may hold unescaped.
"""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

__all__ = ["ServerSentEvent", "events"]


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its name and its data lines, joined."""

    event: str
    data: str


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[ServerSentEvent]:
    """The events of a body that comes in chunks of any size; an unfinished last one is dropped."""
    name, data = "message", list[str]()
    async for line in _lines(chunks):
        if not line:
            if data:
                yield ServerSentEvent(name, "\n".join(data))
            name, data = "message", []
            continue
        field, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode(errors="replace")
        if field == b"event":
            name = text
        elif field == b"data":
            data.append(text)


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    pending = bytearray()
    async for chunk in chunks:
        start = max(len(pending) - 1, 0)
        pending += chunk
        # A CR at the very end may be half of a CR LF: it waits for the next chunk.
        while (end := _line_end(pending, start)) is not None:
            stop, after = end
            yield bytes(pending[:stop])
            del pending[:after]
            start = 0


def _line_end(pending: bytearray, start: int) -> tuple[int, int] | None:
    feed, carriage = pending.find(b"\n", start), pending.find(b"\r", start)
    if carriage != -1 and (feed == -1 or carriage < feed):
        if carriage + 1 == len(pending):
            return None
        return carriage, carriage + (2 if pending.startswith(b"\n", carriage + 1) else 1)
    return None if feed == -1 else (feed, feed + 1)
