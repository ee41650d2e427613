"""What brings Redis back to what the rows say: entries and orders that are missing, entries too many."""

import logging
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from vyvo_dagster.dispatch.duties import loops
from vyvo_dagster.dispatch.poison import unreadable
from vyvo_dagster.dispatch.requeue import stream_of
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys, queues
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.entries import add_many
from vyvo_dagster.streams.handover import hand_over
from vyvo_dagster.streams.scripts import Script

__all__ = ["Repair"]

log = logging.getLogger(__name__)

_BATCH = 500
_TIDY = 1000
_RESEND_SECONDS = 5.0
_REBUILD_SECONDS = 3600

# KEYS: this rebuild's own marker, the epoch. ARGV: id of the server's run.
_SETTLE = Script("""
if redis.call('DEL', KEYS[1]) == 1 then redis.call('SET', KEYS[2], ARGV[1]) end
return 1
""")


class Repair:
    """Periodic duties, as those of `Upkeep`; any number of orchestrators may do them.

    Args:
        lease: of an attempt, as dispatch gives it.
        silence: time after which a node's agent has named in a heartbeat what it was ordered.
    """

    def __init__(
        self, database: Database, redis: AsyncRedis, *, lease: timedelta, silence: timedelta
    ) -> None:
        self._database = database
        self._redis = redis
        self._lease = lease
        self._silence = silence
        self._tidied: dict[str, str] = {}

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """All duties as loops that run until canceled, by name."""
        return loops((self.rebuild_streams, self.tidy_queues)) | loops(
            (self.resend_orders,), _RESEND_SECONDS
        )

    async def rebuild_streams(self) -> None:
        """After a flush or a restart of Redis, write all queued jobs, builds and orders again.

        A restart may have lost the last second of its append-only file. The marker is set last: a
        crash in the middle repeats the rebuild, and entries written twice are claimed once. It is
        set only where nothing was flushed since the beginning.
        """
        run_id = str((await self._redis.info("server"))["run_id"])
        if await self._redis.get(keys.EPOCH) == run_id:
            return
        mine = keys.rebuild(uuid4())
        await self._redis.set(mine, "1", ex=_REBUILD_SECONDS)
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
            builds = await store.build_queue.unlaunched(_BATCH)
        await add_many(self._redis, [(keys.BUILDS, {"id": str(id_)}) for id_ in builds])
        orders = await self._resend(timedelta(0))
        await _SETTLE(self._redis, [mine, keys.EPOCH], [run_id])
        if count or builds or orders:
            log.info(
                "wrote the entries of %d jobs and %d builds, and %d orders, again",
                count, len(builds), orders,
            )  # fmt: skip

    async def resend_orders(self) -> None:
        """Write orders again that no agent has read: their writer died, or Redis lost them."""
        count = await self._resend(self._silence)
        if count:
            log.warning("wrote %d orders again that no agent has told of", count)

    async def _resend(self, silence: timedelta) -> int:
        """Agents take an order once, so that one more does no harm."""
        count = 0
        last: UUID | None = None
        while True:
            async with self._database.transaction() as store:
                orders = await store.dispatches.unheard(silence, self._lease, last, _BATCH)
            await hand_over(self._redis, orders, [], again=True)
            count += len(orders)
            if len(orders) < _BATCH:
                return count
            last = orders[-1].job_id

    async def tidy_queues(self) -> None:
        """Drop entries of jobs that wait no more: canceled, expired, or written twice.

        Dispatch does so too when it claims one, but a queue that no node serves it never reads.
        """
        streams = sorted(q.stream for q in await queues.names(self._redis))
        self._tidied = {stream: self._tidied.get(stream, "-") for stream in streams}
        # Those looked at longest ago first: a look moves a stream to the end.
        room = _TIDY
        for stream, after in list(self._tidied.items()):
            if room <= 0:
                break
            entries = await queues.peek(self._redis, stream, after, min(room, _BATCH))
            del self._tidied[stream]
            self._tidied[stream] = f"({entries[-1].id}" if len(entries) == _BATCH else "-"
            room -= max(len(entries), 1)
            # What names no job is dispatch's to set aside.
            poison = {entry.id for entry, _ in unreadable(entries)}
            by_job = [(UUID(e.fields["id"]), e) for e in entries if e.id not in poison]
            async with self._database.transaction() as store:
                waiting = await store.jobs.still_wait([job_id for job_id, _ in by_job])
            # Of a job that was queued twice in one stream the first entry serves.
            first = dict(reversed(by_job))
            await queues.acknowledge(
                self._redis,
                [e for job_id, e in by_job if job_id not in waiting or first[job_id] is not e],
            )
