"""The outbox relay: writes committed stream entries to Redis.

Every process that commits entries runs one and kicks it after the commit; the orchestrator's
also sweeps, so that what a crashed process left behind is written a second later.
"""

import asyncio
import logging

from redis.exceptions import RedisError

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys, queues
from vyvo_dagster.streams.client import AsyncRedis

__all__ = ["Relay"]

log = logging.getLogger(__name__)

_BATCH = 500


class Relay:
    """Moves outbox rows to their streams, oldest first.

    Args:
        sweep_seconds: how often to look without having been kicked.
    """

    def __init__(self, database: Database, redis: AsyncRedis, sweep_seconds: float = 1.0) -> None:
        self._database = database
        self._redis = redis
        self._sweep = sweep_seconds
        self._kicked = asyncio.Event()

    def kick(self) -> None:
        """Something was committed: look now."""
        self._kicked.set()

    async def run(self) -> None:
        """Relay until canceled; survives a server that goes away."""
        away = False
        while True:
            try:
                async with asyncio.timeout(self._sweep):
                    await self._kicked.wait()
            except TimeoutError:
                pass
            self._kicked.clear()
            try:
                while await self.drain() == _BATCH:
                    pass
                away = False
            except (RedisError, Unavailable) as error:
                if not away:
                    log.warning("the outbox waits: %s", error)
                away = True
                await asyncio.sleep(0.5)

    async def drain(self) -> int:
        """Write one batch; returns how many entries it had."""
        async with self._database.transaction() as store:
            entries = await store.outbox.take(_BATCH)
            waiting = [
                (e.stream, e.fields["id"], e.fields["at"])
                for e in entries
                if keys.is_jobs(e.stream)
            ]
            await queues.enqueue(self._redis, waiting)
            if entries:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for entry in entries:
                        if not keys.is_jobs(entry.stream):
                            pipe.xadd(entry.stream, {**entry.fields})
                        if keys.is_node(entry.stream):
                            pipe.pexpire(entry.stream, keys.NODE_MS)
                    await pipe.execute()
        return len(entries)
