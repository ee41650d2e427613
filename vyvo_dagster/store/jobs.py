"""Jobs as clients see them: submission, reading, cancel, position in the queue, expiry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JOB, JobState, Priority
from vyvo_dagster.store.records import Job
from vyvo_dagster.store.rows import page, record
from vyvo_dagster.store.tables import jobs

__all__ = ["Ahead", "JobRepository"]

_J = jobs.c
IN_FLIGHT = (JobState.DISPATCHED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a waiting job competes with: counts of jobs of its version."""

    urgent: int
    """Of more urgent classes."""
    own: int
    """Of its own tenant and class, before it."""
    others: Mapping[str, int]
    """Of its class, by other tenant."""


class JobRepository:
    """SQL over jobs, save what attempts do."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add_many(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert queued jobs in one batch."""
        if rows:
            await self._connection.execute(
                sa.insert(jobs), [{"state": JobState.QUEUED, **row} for row in rows]
            )

    async def get(self, id: UUID, tenant: str | None, *, lock: bool = False) -> Job | None:
        """One job, of `tenant` unless that is None; with `lock` nobody changes it before the commit."""
        query = sa.select(jobs).where(_J.id == id)
        if lock:
            # As strong as an update of it: what refers to the job is not held up.
            query = query.with_for_update(key_share=True)
        if tenant is not None:
            query = query.where(_J.tenant == tenant)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(Job, row)

    async def browse(
        self,
        tenant: str | None,
        cursor: UUID | None,
        limit: int,
        state: JobState | None = None,
        model_id: str | None = None,
    ) -> list[Job]:
        """Newest first, of `tenant` unless that is None."""
        query = sa.select(jobs)
        for column, value in ((_J.tenant, tenant), (_J.state, state), (_J.model_id, model_id)):
            if value is not None:
                query = query.where(column == value)
        rows = await self._connection.execute(page(query, _J.id, cursor, limit))
        return [record(Job, r) for r in rows.mappings()]

    async def ahead(self, job: Job) -> Ahead:
        """What waits of the version of a job that waits, in its class and more urgent ones."""
        classes = list(Priority)[: list(Priority).index(job.priority) + 1]
        query = (
            sa.select(
                _J.priority, _J.tenant, sa.func.count(), sa.func.count().filter(_J.id < job.id)
            )
            .where(
                _J.state == JobState.QUEUED,
                _J.model_id == job.model_id,
                _J.version_id == job.version_id,
                _J.priority.in_(classes),
            )
            .group_by(_J.priority, _J.tenant)
        )
        urgent, own, others = 0, 0, dict[str, int]()
        for priority, tenant, count, before in await self._connection.execute(query):
            if priority != job.priority:
                urgent += count
            elif tenant != job.tenant:
                others[tenant] = count
            else:
                own = before
        return Ahead(urgent, own, others)

    async def waiting_of_key(self, key_id: UUID) -> int:
        """How many jobs wait that count against the quota of an API key."""
        query = sa.select(sa.func.count()).where(_J.key_id == key_id, _J.state == JobState.QUEUED)
        return int((await self._connection.execute(query)).scalar_one())

    async def mean_seconds(self, model_id: str, sample: int = 20) -> float | None:
        """Mean run time of the model's latest successes, None when it has none."""
        latest = (
            sa.select((_J.completed_at - _J.started_at).label("took"))
            .where(
                _J.model_id == model_id, _J.state == JobState.SUCCEEDED, _J.started_at.is_not(None)
            )
            .order_by(_J.id.desc())
            .limit(sample)
            .subquery()
        )
        mean = sa.func.extract("epoch", sa.func.avg(latest.c.took))
        value = (await self._connection.execute(sa.select(mean))).scalar()
        return None if value is None else float(value)

    async def cancel_queued(self, id: UUID) -> Job | None:
        """Cancel a job that waits; None when it does not wait."""
        return await self._one(
            sa.update(jobs)
            .where(_J.id == id, _J.state == JobState.QUEUED)
            .values(
                state=JobState.CANCELED,
                completed_at=sa.func.now(),
                error_code="canceled",
                cancel_requested_at=sa.func.now(),
            )
            .returning(jobs)
        )

    async def request_cancel(self, id: UUID) -> Job | None:
        """Note that a job in flight is to be canceled; None when it is not in flight."""
        return await self._one(
            sa.update(jobs)
            .where(_J.id == id, _J.state.in_(IN_FLIGHT))
            .values(cancel_requested_at=sa.func.coalesce(_J.cancel_requested_at, sa.func.now()))
            .returning(jobs)
        )

    async def set_priority(self, id: UUID, priority: Priority) -> Job | None:
        """Change the priority of a job that waits; None when it does not wait."""
        return await self._one(
            sa.update(jobs)
            .where(_J.id == id, _J.state == JobState.QUEUED)
            .values(priority=priority)
            .returning(jobs)
        )

    async def expire(self, limit: int) -> list[Job]:
        """End jobs whose time in the queue is over; returns them."""
        due = (
            sa.select(_J.id)
            .where(_J.state == JobState.QUEUED, _J.expires_at < sa.func.now())
            .order_by(_J.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = await self._connection.execute(
            sa.update(jobs)
            .where(_J.id.in_(due), _J.state.in_(JOB.before(JobState.EXPIRED)))
            .values(
                state=JobState.EXPIRED,
                completed_at=sa.func.now(),
                error_code="expired",
                error_message="no node took the job within its time in the queue",
            )
            .returning(jobs)
        )
        return [record(Job, r) for r in rows.mappings()]

    async def queued(self, after: UUID | None, limit: int) -> list[Job]:
        """Waiting jobs in the order of their ids; what the streams are rebuilt from."""
        # One that waits to be tried again is not in a stream; its time puts it there.
        waiting = (_J.state == JobState.QUEUED, _J.retry_at.is_(None))
        query = sa.select(jobs).where(*waiting).order_by(_J.id).limit(limit)
        if after is not None:
            query = query.where(_J.id > after)
        return [record(Job, r) for r in (await self._connection.execute(query)).mappings()]

    async def still_wait(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of `ids` that wait to be dispatched."""
        given = sa.cast(list(ids), ARRAY(PG_UUID(as_uuid=True)))
        query = sa.select(_J.id).where(_J.id == sa.any_(given), _J.state == JobState.QUEUED)
        return set((await self._connection.execute(query)).scalars())

    async def depths(self) -> list[tuple[str, Priority, int, float]]:
        """(model, priority, waiting, age of the oldest in seconds) of each queue that is not empty."""
        age = sa.func.extract("epoch", sa.func.now() - sa.func.min(_J.created_at))
        query = (
            sa.select(_J.model_id, _J.priority, sa.func.count(), age)
            .where(_J.state == JobState.QUEUED)
            .group_by(_J.model_id, _J.priority)
        )
        return [
            (model, Priority(priority), int(count), float(oldest))
            for model, priority, count, oldest in await self._connection.execute(query)
        ]

    async def _one(self, statement: sa.Executable) -> Job | None:
        row = (await self._connection.execute(statement)).mappings().first()
        return None if row is None else record(Job, row)
