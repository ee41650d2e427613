"""What is said to Redis after a commit: best effort, since the rows hold the truth.

A client that misses an event finds the row's state by its stream's next look; dispatch that
misses a wake-up looks again within a second. So a Redis that is away must not fail or slow a
request: each attempt is bounded, and after a failure there is a pause.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
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


class Announcer:
    """Publishes events and wake-ups; never raises for a Redis that is away."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis
        self._paused_until = 0.0

    async def events(self, events: Sequence[tuple[UUID, str, Mapping[str, Any]]]) -> None:
        """Publish (job id, kind, data) events in order."""
        if events:
            told = [(str(job_id), kind, data) for job_id, kind, data in events]
            await self._say(lambda: publish_many(self._redis, told))

    async def changes(self, jobs: Sequence[Job]) -> None:
        """Tell that these jobs were requeued or have ended."""
        if jobs:
            await self._say(lambda: publish_job_changes(self._redis, jobs))

    async def wake(self) -> None:
        """Tell dispatch that a slot may be free."""
        await self._say(lambda: self._redis.publish(keys.WAKE, "api"))

    async def _say(self, what: Callable[[], Awaitable[object]]) -> None:
        if time.monotonic() < self._paused_until:
            return
        try:
            async with asyncio.timeout(_BOUND_SECONDS):
                await what()
        except (RedisError, TimeoutError, OSError) as error:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            log.warning("events are not published: %s", error or type(error).__name__)
