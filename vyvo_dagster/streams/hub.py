"""One reader of all events for a whole process, whatever the number of its clients.

It reads while there are clients, and for a while after the last: events that nobody follows cost
nothing.

What a client may have missed (it was too slow, Redis was away, the reader fell behind) it finds by
replaying its job's own stream, a few clients at a time.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final
from uuid import UUID

from redis.exceptions import RedisError

from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.entries import entries_of
from vyvo_dagster.streams.events import Event, newer, replay

__all__ = ["EventHub", "Subscription"]

_QUEUE: Final = 2048
_AT_ONCE: Final = 256
_READ: Final = 500
_AGAIN_SECONDS: Final = 0.5
# How long to read on when nobody follows any more, and how long a first client waits for the tip.
_LINGER_SECONDS: Final = 5.0
_TIP_SECONDS: Final = 1.0
# Replays at a time: hundreds of clients come at once after a restart, and the pool is shared.
_REPLAYS: Final = 16


class Subscription:
    """What one client waits for.

    Args:
        accepts: which events it takes; unset, all.
    """

    def __init__(self, accepts: Callable[[Event], bool] | None = None) -> None:
        self._accepts = accepts
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._missed = 0
        self._disturbed = False

    def offer(self, event: Event) -> None:
        """Hand over an event without waiting; what a full queue does not take is counted."""
        if self._accepts is not None and not self._accepts(event):
            return
        if len(self._events) >= _QUEUE:
            self._missed += 1
            return
        self._events.append(event)
        self._ready.set()

    def disturb(self) -> None:
        """Events may be missing that were never offered."""
        self._disturbed = True
        self._ready.set()

    def missed(self) -> int:
        """Events dropped since the last call."""
        missed, self._missed = self._missed, 0
        return missed

    def gap(self) -> bool:
        """Whether events may be missing since the last call."""
        disturbed, self._disturbed = self._disturbed, False
        return self.missed() > 0 or disturbed

    async def next(self, seconds: float) -> list[Event]:
        """What has come, in order; empty after `seconds`, or where events may be missing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        found = [self._events.popleft() for _ in range(min(len(self._events), _AT_ONCE))]
        if not self._events:
            self._ready.clear()
        return found


class EventHub:
    """Reads `vyvo:events` once for the whole process and hands events to subscriptions."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis
        self._by_topic: dict[str | None, set[Subscription]] = {}
        self._replays = asyncio.Semaphore(_REPLAYS)
        self._followed = asyncio.Event()
        self._reading = asyncio.Event()
        self._followed_until = 0.0

    @contextlib.asynccontextmanager
    async def subscribe(
        self, topic: UUID | str | None, accepts: Callable[[Event], bool] | None = None
    ) -> AsyncGenerator[Subscription]:
        """A Subscription for as long as the block runs. Subscribe first, replay after.

        What is published once the block has begun is offered. Where Redis is away it begins all the
        same, and is disturbed when events come again.

        Args:
            topic: a job; None takes every job's events.
            accepts: which of them.
        """
        key = None if topic is None else str(topic)
        subscription = Subscription(accepts)
        self._by_topic.setdefault(key, set()).add(subscription)
        self._followed.set()
        try:
            if not self._reading.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TIP_SECONDS):
                        await self._reading.wait()
            yield subscription
        finally:
            members = self._by_topic[key]
            members.discard(subscription)
            if not members:
                del self._by_topic[key]
            if not self._by_topic:
                self._followed.clear()
                self._followed_until = asyncio.get_running_loop().time()

    async def replay(self, job_id: UUID | str, after: str) -> list[Event]:
        """The kept events of a job after id `after`, oldest first; waits for its turn."""
        async with self._replays:
            return await replay(self._redis, job_id, after)

    async def follow(
        self, job_id: UUID | str, after: str, idle: float
    ) -> AsyncGenerator[list[Event]]:
        """Events of a job after id `after`: the kept ones, then live, as many as there are.

        Each event is given once and in order. An empty list comes after `idle` silent seconds, and
        where events may have been lost that no stream holds: the job's row is to be looked at. The
        caller ends the iteration.
        """
        async with self.subscribe(job_id) as subscription:
            last = after
            pending = await self.replay(job_id, last)
            fresh = _after(pending, last)
            while True:
                if fresh:
                    last = fresh[-1].id
                    yield fresh
                pending = await subscription.next(idle)
                if subscription.gap() or not pending:
                    # Whatever a lost connection to Redis or a full queue dropped is found here.
                    pending = await self.replay(job_id, last) + pending
                    if not pending:
                        yield []
                fresh = _after(pending, last)

    async def run(self) -> None:
        """Read while anyone follows, until canceled; survives a Redis that goes away."""
        last: str | None = None
        away = False
        while True:
            if self._idle():
                last, away = None, False
                self._reading.clear()
                await self._followed.wait()
            try:
                if last is None:
                    last = await self._tip()
                    self._reading.set()
                answer = await self._redis.xread({keys.ALL_EVENTS: last}, count=_READ, block=5000)
                found = entries_of(answer)
                if away or await self._outrun(found):
                    # Before what was read is handed over, so that nobody goes on past a gap.
                    self._disturb()
                    away = False
            except RedisError:
                away = True
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            for id_, fields in found:
                last = id_
                self._hand_over(fields)

    def _idle(self) -> bool:
        now = asyncio.get_running_loop().time()
        return not self._by_topic and now >= self._followed_until + _LINGER_SECONDS

    async def _tip(self) -> str:
        """Id of the newest entry: reading on from it misses nothing that comes between two reads."""
        newest: Any = await self._redis.xrevrange(keys.ALL_EVENTS, count=1)
        return newest[0][0] if newest else "0-0"

    async def _outrun(self, found: list[tuple[str, dict[str, str]]]) -> bool:
        """Whether the stream may have been cut off before it was read: it is capped."""
        if len(found) < _READ:
            return False
        oldest: Any = await self._redis.xrange(keys.ALL_EVENTS, count=1)
        return not oldest or newer(oldest[0][0], found[0][0])

    def _disturb(self) -> None:
        for members in self._by_topic.values():
            for subscription in members:
                subscription.disturb()

    def _hand_over(self, fields: dict[str, str]) -> None:
        topic = fields["topic"]
        listening = (*self._by_topic.get(topic, ()), *self._by_topic.get(None, ()))
        if not listening:
            return
        event = Event(topic, fields["id"], fields["kind"], fields["data"])
        for subscription in listening:
            subscription.offer(event)


def _after(events: list[Event], last: str) -> list[Event]:
    """Those after id `last`, each once."""
    fresh: list[Event] = []
    for event in events:
        if newer(event.id, last):
            last = event.id
            fresh.append(event)
    return fresh
