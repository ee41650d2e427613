"""Group commit: the submissions that came during one write share the next one.

No timer: an idle gateway writes a lone job at once, a busy one larger groups. Jobs are answered
once they are committed, and the idempotency keys that they come with are claimed by the same
statement; what was committed during one round trip to Redis goes with the next. The
outbox entries of what Redis has are dropped by the next write, and those of what it has not are
brought to their streams by the relay.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from redis.exceptions import RedisError

from api.idempotency import Once
from api.jobs.positions import Positions
from api.jobs.schemas import BatchAccepted, JobAccepted
from vyvo_dagster.domain.fairness import Weighing
from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.errors import QuotaExceeded, Unavailable, VyvoError
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.submissions import (
    Claim,
    ClaimHeld,
    Depths,
    NewJob,
    SubmissionLine,
    Submitted,
)
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.submissions import Announced, announce

__all__ = ["Gateway", "Prepared", "Written", "over_quota"]

log = logging.getLogger(__name__)

_GROUP: Final = 200
_WAITING: Final = 10_000
# Committed and not announced: beyond this, writing waits for Redis.
_BEHIND: Final = 2000
_WRITE_SECONDS: Final = 10.0
_REDIS_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 1.0
# Well before the entries are the relay's.
_DROP_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that was checked, with what its answer says beside its place."""

    job: NewJob
    ready_nodes: int
    mean_seconds: float | None
    once: Once | None = None
    """Where it came with an idempotency key that `Gateway.add` is to claim."""

    def accepted(self, position: int) -> JobAccepted:
        """The answer."""
        return JobAccepted.of(self.job, position, self.ready_nodes, self.mean_seconds)


@dataclass(frozen=True, slots=True)
class Written:
    """A job that is in the transaction, its outbox entry, and its creation in ms."""

    job: NewJob
    entry: int
    at: int
    answer: JobAccepted


@dataclass(slots=True)
class _Waiter:
    prepared: Prepared
    answer: asyncio.Future[JobAccepted | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def fail(self, error: Exception) -> None:
        if not self.answer.done():  # it may have given up
            self.answer.set_exception(error)


class Gateway:
    """Writes jobs, in groups where they come alone.

    Args:
        line: the connection that groups are written on; closed with `write_groups`.
        weighing: the weights that are in force; places in the queue follow from them.
    """

    def __init__(
        self,
        line: SubmissionLine,
        redis: AsyncRedis,
        weighing: Callable[[], Weighing] = lambda: Weighing({}),
    ) -> None:
        self._line = line
        self._redis = redis
        self._positions = Positions(weighing)
        self._waiters: list[_Waiter] = []
        self._asked = asyncio.Event()
        self._untold: list[Written] = []
        self._told = asyncio.Event()
        self._tell = asyncio.Event()
        self._done: list[int] = []
        self._dropping: asyncio.TimerHandle | None = None
        self._paused_until = 0.0

    async def add(self, prepared: Prepared) -> JobAccepted | None:
        """Write one job with whatever else comes now; None where its version takes jobs no more, or
        its idempotency key was claimed before or is held by another transaction.

        Raises:
            QuotaExceeded: too many jobs of its key wait.
            Unavailable: the database is away. The job may have been written all the same.
        """
        if len(self._waiters) >= _WAITING:
            raise Unavailable("too many jobs wait to be written; try again shortly")
        waiter = _Waiter(prepared)
        self._waiters.append(waiter)
        self._asked.set()
        try:
            async with asyncio.timeout(3 * _WRITE_SECONDS):
                return await waiter.answer
        except TimeoutError as error:
            raise Unavailable("the database does not answer; try again shortly") from error

    async def write(self, store: Store, jobs: Sequence[Prepared]) -> list[Written] | None:
        """Write jobs in the caller's transaction: all, or None where a version takes jobs no more.

        Raises:
            QuotaExceeded: too many jobs of their key wait; the transaction is to be rolled back.
        """
        rows = [p.job for p in jobs]
        counted = self._positions.unknown(rows)
        depths = await store.submissions.depths(counted) if counted else {}
        answers = self._answers(jobs, counted, depths)
        submitted = await store.submissions.submit(rows)
        if submitted.over_quota:
            raise over_quota(rows[0].max_queued)
        written = _written(jobs, answers, submitted)
        return written if len(written) == len(jobs) else None

    def announce(self, written: Sequence[Written]) -> None:
        """Bring committed jobs to their streams, with their first events, as soon as can be.

        A Redis that is away fails nothing: the relay writes the entries when it is back.
        """
        self._untold += written
        self._tell.set()

    async def write_groups(self) -> None:
        """Write what is asked for, until canceled; the other loop is `announce_groups`."""
        try:
            await self._write_groups()
        finally:
            if self._dropping is not None:
                self._dropping.cancel()
            for waiter in self._waiters:
                waiter.fail(Unavailable("the api is stopping; try again shortly"))
            self._waiters.clear()
            await self._line.close()

    async def _write_groups(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            while len(self._untold) > _BEHIND:
                self._told.clear()
                await self._told.wait()
            # Who has given up is told 503 already, and will ask again.
            waiting = [w for w in self._waiters if not w.answer.done()]
            group, self._waiters = waiting[:_GROUP], waiting[_GROUP:]
            if self._waiters:
                self._asked.set()
            try:
                if group or self._done:
                    await self._flush(group)
            finally:
                for waiter in group:
                    waiter.fail(Unavailable("the api is stopping; try again shortly"))

    async def _flush(self, group: Sequence[_Waiter]) -> None:
        prepared = [w.prepared for w in group]
        rows = [p.job for p in prepared]
        counted = self._positions.unknown(rows)
        done, self._done = self._done, []
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                depths = await self._line.depths(counted) if counted else {}
                # Made before the write, which keeps them for those who repeat a request.
                answers = self._answers(prepared, counted, depths)
                claims = [
                    _claim(each.job, each.once, answer)
                    for each, answer in zip(prepared, answers, strict=True)
                    if each.once is not None
                ]
                submitted = await self._line.submit(rows, claims, done)
        except ClaimHeld:
            await self._without_claims(group)
            return
        except Exception as error:  # noqa: BLE001 - it goes to those who wait
            await self._failed(group, error)
            return
        written = _written(prepared, answers, submitted)
        if written:
            self.announce(written)
        made = {w.job.id: w.answer for w in written}
        for waiter in group:
            job = waiter.prepared.job
            if str(job.id) in submitted.over_quota:
                waiter.fail(over_quota(job.max_queued))
            elif not waiter.answer.done():
                waiter.answer.set_result(made.get(job.id))

    async def _without_claims(self, group: Sequence[_Waiter]) -> None:
        """Write those without a key; the others may wait for theirs in a transaction of their own."""
        for waiter in group:
            if waiter.prepared.once is not None and not waiter.answer.done():
                waiter.answer.set_result(None)
        rest = [w for w in group if w.prepared.once is None]
        if len(rest) == len(group):  # something else than a claim holds the tables
            await self._failed(group, TimeoutError())
        elif rest:
            await self._flush(rest)

    async def _failed(self, group: Sequence[_Waiter], error: Exception) -> None:
        if isinstance(error, TimeoutError):
            error = Unavailable("the database does not answer; try again shortly")
        elif not isinstance(error, VyvoError):
            log.error("a group of %d submissions failed", len(group), exc_info=error)
        if len(group) > 1 and not isinstance(error, Unavailable):
            # One row that Postgres refuses must not fail its neighbours.
            for waiter in group:
                await self._flush([waiter])
            return
        for waiter in group:
            waiter.fail(error)

    def _answers(
        self, jobs: Sequence[Prepared], counted: Sequence[str], depths: Depths
    ) -> list[JobAccepted]:
        places = self._positions.of([p.job for p in jobs], counted, depths)
        return [each.accepted(place) for each, place in zip(jobs, places, strict=True)]

    def _drop_soon(self) -> None:
        """Let the next write drop the entries of what was announced, one of its own at the latest.

        Not at once: a commit more would hold up that of dispatch, which takes the same jobs now.
        """
        if self._dropping is None:
            self._dropping = asyncio.get_running_loop().call_later(_DROP_SECONDS, self._drop)

    def _drop(self) -> None:
        self._dropping = None
        self._asked.set()

    async def announce_groups(self) -> None:
        """Announce what is committed, until canceled."""
        while True:
            await self._tell.wait()
            self._tell.clear()
            written, self._untold = self._untold, []
            self._told.set()
            if time.monotonic() < self._paused_until:
                continue
            told = [
                Announced(
                    w.job.stream, str(w.job.id), w.at, JobEventKind.QUEUED,
                    w.answer.model_dump_json(exclude={"job_id"}),
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
                self._drop_soon()


def _written(
    jobs: Sequence[Prepared], answers: Sequence[JobAccepted], submitted: Submitted
) -> list[Written]:
    return [
        Written(each.job, entry, submitted.at, answer)
        for each, answer in zip(jobs, answers, strict=True)
        if (entry := submitted.entries.get(str(each.job.id))) is not None
    ]


def _claim(job: NewJob, once: Once, answer: JobAccepted) -> Claim:
    assert once.key is not None
    text = BatchAccepted(jobs=[answer]).model_dump_json()
    return Claim(job.id, job.tenant, once.key, once.route, once.fingerprint, text)


def over_quota(max_queued: int | None) -> QuotaExceeded:
    """The error of one who has as many jobs waiting as may wait."""
    return QuotaExceeded(
        f"{max_queued} jobs of this key may wait, and no more; try again when some have begun"
    )
