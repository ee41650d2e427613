"""Server-sent events: framing, and streams that end when the process stops."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Final, TypeVar

from fastapi import Header
from fastapi.responses import StreamingResponse

from vyvo_dagster.telemetry import metrics

__all__ = [
    "KEEP_ALIVE",
    "KEEP_ALIVE_SECONDS",
    "LastEventId",
    "event_stream",
    "frame",
    "framed",
    "until",
]

T = TypeVar("T")

KEEP_ALIVE: Final = ": keep-alive\n\n"
KEEP_ALIVE_SECONDS: Final = 15.0
_END: Final = object()

LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", max_length=64, description="Id of the last event received."),
]


def frame(event: str, data: Any, id: str | None = None) -> str:
    """One event on the wire."""
    return framed(event, json.dumps(data, separators=(",", ":")), id)


def framed(event: str, text: str, id: str | None = None) -> str:
    """One event on the wire, of JSON text. JSON holds no raw line break: one data line suffices."""
    head = "" if id is None else f"id: {id}\n"
    return f"{head}event: {event}\ndata: {text}\n\n"


def event_stream(route: str, source: AsyncIterator[str]) -> StreamingResponse:
    """An answer that streams `source`, counted while it is open."""

    async def counted() -> AsyncIterator[str]:
        with metrics.SSE_CLIENTS.labels(route).track_inprogress():
            # A first byte at once: proxies and clients see that the stream is open.
            yield ": open\n\n"
            async for text in source:
                yield text

    return StreamingResponse(
        counted(), media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )  # fmt: skip


async def until(stop: asyncio.Event, source: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """The items of `source` until it ends or `stop` is set."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while True:
            item = asyncio.ensure_future(anext(source, _END))
            try:
                await asyncio.wait({item, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not item.done():
                    item.cancel()
                    with suppress(asyncio.CancelledError):
                        await item
            if item.cancelled():
                return
            found = item.result()
            if found is _END:
                return
            yield found  # type: ignore[misc]
    finally:
        stopping.cancel()
        await source.aclose()
