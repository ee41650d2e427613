"""Server-sent events, read from bytes (WHATWG HTML, section 9.2.6).

Lines end at LF, CR LF or CR only. Text-level line splitting also breaks at U+2028 and U+0085,
which JSON may hold unescaped.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Decoder", "ServerSentEvent", "events", "events_of"]


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its name, its data lines, joined, and the last id that the stream gave."""

    event: str
    data: str
    id: str = ""


class Decoder:
    """Events out of chunks of any size; does no I/O. An unfinished last event is never given."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._name, self._data, self._id = "message", list[str](), ""

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that end in `chunk`; consume them before the next chunk is fed."""
        start = max(len(self._pending) - 1, 0)
        self._pending += chunk
        # A CR at the very end may be half of a CR LF: it waits for the next chunk.
        while (end := _line_end(self._pending, start)) is not None:
            stop, after = end
            line = bytes(self._pending[:stop])
            del self._pending[:after]
            start = 0
            if line:
                self._take(line)
                continue
            if self._data:
                yield ServerSentEvent(self._name, "\n".join(self._data), self._id)
            self._name, self._data = "message", []

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode(errors="replace")
        if field == b"event":
            self._name = text
        elif field == b"data":
            self._data.append(text)
        elif field == b"id" and "\0" not in text:
            self._id = text


def events(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """The events of a body that comes in chunks."""
    decoder = Decoder()
    for chunk in chunks:
        yield from decoder.feed(chunk)


async def events_of(chunks: AsyncIterable[bytes]) -> AsyncIterator[ServerSentEvent]:
    """The same, for chunks that are awaited."""
    decoder = Decoder()
    async for chunk in chunks:
        for event in decoder.feed(chunk):
            yield event


def _line_end(pending: bytearray, start: int) -> tuple[int, int] | None:
    feed, carriage = pending.find(b"\n", start), pending.find(b"\r", start)
    if carriage != -1 and (feed == -1 or carriage < feed):
        if carriage + 1 == len(pending):
            return None
        return carriage, carriage + (2 if pending.startswith(b"\n", carriage + 1) else 1)
    return None if feed == -1 else (feed, feed + 1)
