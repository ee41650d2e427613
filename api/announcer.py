"""What is said to Redis after a commit: best effort, since the rows hold the truth.

A client that misses an event finds the row's state by its stream's next look; dispatch that
misses a wake-up looks again within a second. So a Redis that is away must not fail or slow a
request: each attempt is bounded, and after a failure there is a pause. What several requests have
to say at a time goes in one round trip.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from redis.exceptions import RedisError

from vyvo_dagster.dispatch.requeue import publish_job_changes
from vyvo_dagster.store.records import Job
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.events import publish_many

__all__ = ["Announcer"]

log = logging.getLogger(__name__)

_BOUND_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 1.0
_HEAPED: Final = 4096

_Event = tuple[str, str, Mapping[str, Any]]


class Announcer:
    """Publishes events and wake-ups; never raises for a Redis that is away."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis
        self._paused_until = 0.0
        self._events: list[_Event] = []
        self._changes: list[Job] = []
        self._wake = False
        self._asked = asyncio.Event()
        self._said: asyncio.Future[None] | None = None

    async def events(self, events: Sequence[tuple[UUID, str, Mapping[str, Any]]]) -> None:
        """Publish (job id, kind, data) events in order; returns once they are, or cannot be."""
        if events:
            self._events += [(str(job_id), kind, data) for job_id, kind, data in events]
            await self._ask()

    async def report(self, events: Sequence[tuple[UUID, str, Mapping[str, Any]]]) -> None:
        """Publish events soon, in order, and wake dispatch: the next report need not wait for them.

        It waits where too many are still to be said: what cannot be published is not heaped up.
        """
        self._events += [(str(job_id), kind, data) for job_id, kind, data in events]
        self._wake = True
        self._asked.set()
        if len(self._events) > _HEAPED:
            await self._ask()

    async def changes(self, jobs: Sequence[Job]) -> None:
        """Tell that these jobs were requeued or have ended; dispatch is woken too."""
        if jobs:
            self._changes += jobs
            await self._ask()

    def wake(self) -> None:
        """Tell dispatch, soon, that a slot may be free."""
        self._wake = True
        self._asked.set()

    async def run(self) -> None:
        """Say what was asked for, until canceled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            events, self._events = self._events, []
            changes, self._changes = self._changes, []
            wake, self._wake = self._wake, False
            said, self._said = self._said, None
            try:
                await self._say(events, changes, wake)
            finally:
                if said is not None and not said.done():
                    said.set_result(None)

    async def _ask(self) -> None:
        if self._said is None:
            self._said = asyncio.get_running_loop().create_future()
        said = self._said
        self._asked.set()
        # wait() leaves the future alone: others may wait for the same round trip.
        await asyncio.wait({said}, timeout=2 * _BOUND_SECONDS)

    async def _say(self, events: list[_Event], changes: list[Job], wake: bool) -> None:
        if time.monotonic() < self._paused_until:
            return
        try:
            async with asyncio.timeout(_BOUND_SECONDS):
                if wake:
                    # First: a slot that is free is worth more than what is told of it.
                    await self._redis.publish(keys.WAKE, "api")
                await publish_many(self._redis, events)
                await publish_job_changes(self._redis, changes)
        except (RedisError, TimeoutError, OSError) as error:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            log.warning("events are not published: %s", error or type(error).__name__)
