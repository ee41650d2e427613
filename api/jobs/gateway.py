"""Group commit: the submissions that came during one flush share the next one.

No timer: an idle gateway flushes a lone job at once, a busy one flushes larger groups. A flush is
one Postgres transaction and then one Redis pipeline; the outbox entries of what the pipeline has
written are dropped by the next transaction, and written by the relay where it could not.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from redis.exceptions import RedisError

from api.jobs.positions import Positions
from api.jobs.schemas import JobAccepted
from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.errors import Unavailable, VyvoError
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.submissions import NewJob
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.submissions import Announced, announce

__all__ = ["Gateway", "Prepared", "Written"]

log = logging.getLogger(__name__)

_GROUP: Final = 200
_FLUSH_SECONDS: Final = 10.0
_REDIS_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that was checked, with what its answer says beside its place."""

    job: NewJob
    ready_nodes: int
    mean_seconds: float | None
    ttl_seconds: float

    def accepted(self, position: int) -> JobAccepted:
        """The answer."""
        return JobAccepted.of(
            self.job, position, self.ready_nodes, self.mean_seconds, self.ttl_seconds
        )


@dataclass(frozen=True, slots=True)
class Written:
    """A job that is in the transaction, and its outbox entry."""

    prepared: Prepared
    entry: int
    answer: JobAccepted


@dataclass(slots=True)
class _Waiter:
    prepared: Prepared
    answer: asyncio.Future[JobAccepted | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Gateway:
    """Writes jobs, in groups where they come alone."""

    def __init__(self, database: Database, redis: AsyncRedis) -> None:
        self._database = database
        self._redis = redis
        self._positions = Positions()
        self._waiters: list[_Waiter] = []
        self._asked = asyncio.Event()
        self._done: list[int] = []
        self._paused_until = 0.0

    async def add(self, prepared: Prepared) -> JobAccepted | None:
        """Write one job with whatever else comes now; None where its version takes jobs no more.

        Raises:
            Unavailable: the database is away. The job may have been written all the same.
        """
        waiter = _Waiter(prepared)
        self._waiters.append(waiter)
        self._asked.set()
        try:
            async with asyncio.timeout(3 * _FLUSH_SECONDS):
                return await waiter.answer
        except TimeoutError as error:
            raise Unavailable("the database does not answer; try again shortly") from error

    async def write(self, store: Store, jobs: Sequence[Prepared]) -> list[Written] | None:
        """Write jobs in the caller's transaction: all, or None where a version takes jobs no more."""
        written = await self._write(store, jobs)
        return written if len(written) == len(jobs) else None

    async def announce(self, written: Sequence[Written]) -> None:
        """Bring committed jobs to their streams, with their first events, in one round trip.

        A Redis that is away fails nothing: the relay writes the entries when it is back.
        """
        if not written or time.monotonic() < self._paused_until:
            return
        now = int(time.time() * 1000)
        told = [
            Announced(
                w.prepared.job.stream, str(w.prepared.job.id), now,
                JobEventKind.QUEUED, w.answer.model_dump_json(exclude={"job_id"}),
            )
            for w in written
        ]  # fmt: skip
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                await announce(self._redis, told)
        except (RedisError, TimeoutError, OSError) as error:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            log.warning("jobs wait in the outbox: %s", error or type(error).__name__)
        else:
            self._done += [w.entry for w in written]
            self._asked.set()

    async def run(self) -> None:
        """Flush what was asked for, until canceled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            group, self._waiters = self._waiters[:_GROUP], self._waiters[_GROUP:]
            if self._waiters:
                self._asked.set()
            try:
                if group:
                    await self._flush(group)
                elif self._done:
                    await self._tidy()
            finally:
                for waiter in group:
                    if not waiter.answer.done():
                        waiter.answer.set_exception(
                            Unavailable("the api is stopping; try again shortly")
                        )

    async def _flush(self, group: Sequence[_Waiter]) -> None:
        try:
            written = await self._transact([w.prepared for w in group])
        except Exception as error:
            if not isinstance(error, VyvoError):
                log.exception("a group of %d submissions failed", len(group))
            if len(group) > 1 and not isinstance(error, Unavailable):
                # One row that Postgres refuses must not fail its neighbours.
                for waiter in group:
                    await self._flush([waiter])
                return
            for waiter in group:
                if not waiter.answer.done():
                    waiter.answer.set_exception(error)
            return
        await self.announce(written)
        answers: dict[UUID, JobAccepted] = {w.answer.job_id: w.answer for w in written}
        for waiter in group:
            if not waiter.answer.done():  # it may have given up
                waiter.answer.set_result(answers.get(waiter.prepared.job.id))

    async def _transact(self, jobs: Sequence[Prepared]) -> list[Written]:
        done, self._done = self._done, []
        try:
            async with asyncio.timeout(_FLUSH_SECONDS), self._database.transaction() as store:
                if done:
                    await store.outbox.discard(done)
                return await self._write(store, jobs) if jobs else []
        except TimeoutError as error:
            raise Unavailable("the database does not answer; try again shortly") from error

    async def _write(self, store: Store, jobs: Sequence[Prepared]) -> list[Written]:
        rows = [p.job for p in jobs]
        places = await self._positions.of(store, rows)
        entries = await store.submissions.submit(rows)
        return [
            Written(prepared, entries[prepared.job.id], prepared.accepted(place))
            for prepared, place in zip(jobs, places, strict=True)
            if prepared.job.id in entries
        ]

    async def _tidy(self) -> None:
        try:
            await self._transact([])
        except VyvoError:
            log.debug("the relay will write some entries again; their readers do not mind")
