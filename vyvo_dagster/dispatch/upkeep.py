"""The orchestrator's clocks: leases that end, cancels that are due, jobs that expire, nodes gone
silent, and streams that a flush emptied.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.requeue import publish_job_changes, requeue_lost, retry_due, stream_of
from vyvo_dagster.domain.job import JobState
from vyvo_dagster.domain.node import NodeEventKind, NodeState
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.attempts import LOST, Gone
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys, queues
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.entries import add_many

__all__ = ["Upkeep"]

log = logging.getLogger(__name__)

_BATCH = 500
# The agent's own 10 s of grace and its kill of the runner, with room for the report.
_CANCEL_GRACE = timedelta(seconds=20)


class Upkeep:
    """Periodic duties; each is one short transaction, and any number of orchestrators may do them."""

    def __init__(
        self,
        database: Database,
        redis: AsyncRedis,
        *,
        suspect_after: timedelta,
        lost_after: timedelta,
    ) -> None:
        self._database = database
        self._redis = redis
        self._suspect_after = suspect_after
        self._lost_after = lost_after

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """All duties as loops that run until canceled, by name."""
        return {
            duty.__name__: self._every(1.0, duty)
            for duty in (
                self.end_leases,
                self.end_cancels,
                self.retry_jobs,
                self.expire_jobs,
                self.watch_nodes,
                self.rebuild_streams,
            )
        }

    async def _every(self, seconds: float, duty: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await duty()
            except (RedisError, Unavailable) as error:
                log.warning("%s waits: %s", getattr(duty, "__name__", duty), error)
            await asyncio.sleep(seconds)

    async def end_leases(self) -> None:
        """Put jobs whose lease ended back to the queue, or end them."""
        async with self._database.transaction() as store:
            changed = [
                await requeue_lost(store, job, Gone(LOST), charged=True)
                for job in await store.attempts.overdue(_BATCH)
            ]
        await publish_job_changes(self._redis, [job for job in changed if job is not None])

    async def end_cancels(self) -> None:
        """End jobs whose agent did not report a cancel in time."""
        async with self._database.transaction() as store:
            changed = [
                await store.attempts.end_lost(
                    job, JobState.CANCELED, "canceled", "canceled; its node did not confirm in time"
                )
                for job in await store.attempts.cancels_due(_CANCEL_GRACE, _BATCH)
            ]
        await publish_job_changes(self._redis, [job for job in changed if job is not None])

    async def retry_jobs(self) -> None:
        """Stream jobs again whose wait after a failed attempt is over."""
        async with self._database.transaction() as store:
            await retry_due(store, _BATCH)

    async def expire_jobs(self) -> None:
        """End jobs whose time in the queue is over."""
        async with self._database.transaction() as store:
            expired = await store.jobs.expire(_BATCH)
        await publish_job_changes(self._redis, expired)

    async def watch_nodes(self) -> None:
        """Mark silent nodes suspect, then lost. Their attempts go back when their leases end."""
        async with self._database.transaction() as store:
            for states, silence, to, kind in (
                (
                    {NodeState.READY, NodeState.SUSPECT, NodeState.JOINING},
                    self._lost_after,
                    NodeState.LOST,
                    NodeEventKind.LOST,
                ),
                ({NodeState.READY}, self._suspect_after, NodeState.SUSPECT, NodeEventKind.SUSPECT),
            ):
                for node_id in await store.nodes.silent(frozenset(states), silence, to):
                    log.warning("node %s is %s", node_id, to)
                    await store.nodes.add_event(id=uuid7(), node_id=node_id, kind=kind)

    async def rebuild_streams(self) -> None:
        """After a flush of Redis, write the entries of all queued jobs and builds again.

        The marker is set last: a crash in the middle repeats the rebuild, and entries written
        twice are claimed once.
        """
        if await self._redis.exists(keys.EPOCH):
            return
        count = 0
        last: UUID | None = None
        while True:
            async with self._database.transaction() as store:
                queued = await store.jobs.queued(last, _BATCH)
            if not queued:
                break
            await queues.enqueue(
                self._redis,
                [(stream_of(j), j.id, int(j.created_at.timestamp() * 1000)) for j in queued],
            )
            count += len(queued)
            last = queued[-1].id
        async with self._database.transaction() as store:
            builds = await store.builds.unlaunched(_BATCH)
        await add_many(self._redis, [(keys.BUILDS, {"id": str(id_)}) for id_ in builds])
        await self._redis.set(keys.EPOCH, "1")
        if count or builds:
            log.info("wrote the entries of %d jobs and %d builds again", count, len(builds))
