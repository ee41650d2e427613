"""The event stream of one job or run: kept events after `Last-Event-ID`, then live ones, to its end."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, Protocol
from uuid import UUID

from redis.exceptions import RedisError

from api import sse
from api.context import Context
from vyvo_dagster.streams.events import Event

__all__ = ["START", "Followed", "follow", "kept"]

START: Final = "0-0"
"""The id before all."""

_ID: Final = re.compile(r"\d{1,20}(-\d{1,20})?")
_AWAY_SECONDS: Final = 1.0


class Followed(Protocol):
    """What is followed, as its row was when it was last looked at."""

    @property
    def topic(self) -> UUID:
        """Its id."""
        ...

    @property
    def ended(self) -> bool:
        """Whether its row has ended."""
        ...

    async def told(self, events: Sequence[Event]) -> tuple[str, bool]:
        """The text of live events, in one piece; and whether its end is among them."""
        ...

    def rest(self, after: str) -> AsyncGenerator[str]:
        """Of what has ended: the text from `after` to the end, from the row where events are gone."""
        ...

    async def look(self) -> None:
        """Read its row again."""
        ...


async def follow(
    context: Context, what: Followed, last_event_id: str | None
) -> AsyncGenerator[str]:
    """The stream's text."""
    last = last_event_id if last_event_id and _ID.fullmatch(last_event_id) else START
    while True:
        if what.ended:
            async for text in what.rest(last):
                yield text
            return
        live = context.hub.follow(what.topic, last, sse.KEEP_ALIVE_SECONDS)
        try:
            async with aclosing(live) as found:
                async for events in found:
                    if not events:
                        yield sse.KEEP_ALIVE
                        break
                    last = events[-1].id
                    text, ended = await what.told(events)
                    if text:
                        yield text
                    if ended:
                        return
        except RedisError:
            # It goes on without Redis; its row is looked at once a second until events come again.
            yield sse.KEEP_ALIVE
            await asyncio.sleep(_AWAY_SECONDS)
        await what.look()


async def kept(context: Context, topic: UUID, after: str) -> list[Event]:
    """The kept events after an id; none where Redis is away."""
    try:
        return await context.hub.replay(topic, after)
    except RedisError:
        return []
