"""Attempts of jobs: lease, loss, history. All fenced by the attempt's number.

The fencing token is `jobs.attempt`: it is raised by the one UPDATE that dispatches, and every
report names it. A report whose token or node is not the row's own changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, INTEGER
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JobState
from vyvo_dagster.store.jobs import IN_FLIGHT
from vyvo_dagster.store.records import Job, JobAttempt
from vyvo_dagster.store.rows import record
from vyvo_dagster.store.tables import job_attempts, jobs

__all__ = ["LOST", "AttemptRepository", "Gone"]

_J = jobs.c
_A = job_attempts.c
_UUIDS = ARRAY(PG_UUID(as_uuid=True))
LOST = "lost"
"""Outcome of an attempt whose lease ended or whose node started anew."""


@dataclass(frozen=True, slots=True)
class Gone:
    """How an attempt ended that did not end its job by itself."""

    outcome: str
    code: str | None = None
    message: str | None = None


class AttemptRepository:
    """SQL over job_attempts and what attempts do to jobs."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def requeue(
        self, job: Job, gone: Gone, *, charged: bool, delay: timedelta | None = None
    ) -> Job | None:
        """Put a job in flight back to the queue; None when its attempt is not the current one.

        Args:
            gone: how the attempt ended.
            charged: whether it counts towards `max_attempts`.
            delay: time before which it is not to be dispatched again.
        """
        again = await self._one(
            sa.update(jobs)
            .where(_J.id == job.id, _J.attempt == job.attempt, _J.state.in_(IN_FLIGHT))
            .values(
                state=JobState.QUEUED,
                node_id=None,
                assignment_id=None,
                lease_expires_at=None,
                progress=None,
                started_at=None,
                dispatched_at=None,
                retry_at=None if delay is None else sa.func.now() + delay,
                # The time on a node is none in the queue.
                expires_at=_J.expires_at + (sa.func.now() - _J.dispatched_at),
                handed_back=_J.handed_back if charged else _J.handed_back + 1,
            )
            .returning(jobs)
        )
        if again is not None:
            await self._close(job, gone)
        return again

    async def end_lost(
        self, job: Job, state: JobState, code: str, message: str, gone: Gone | None = None
    ) -> Job | None:
        """End a job in flight whose attempt is gone; None when that attempt is not the current one.

        Args:
            state, code, message: of the job.
            gone: how the attempt ended; lost, for the same reason, unless said otherwise.
        """
        ended = await self._one(
            sa.update(jobs)
            .where(_J.id == job.id, _J.attempt == job.attempt, _J.state.in_(IN_FLIGHT))
            .values(
                state=state,
                error_code=code,
                error_message=message,
                completed_at=sa.func.now(),
                lease_expires_at=None,
            )
            .returning(jobs)
        )
        if ended is not None:
            await self._close(job, gone or Gone(LOST, code, message))
        return ended

    async def retries_due(self, limit: int) -> list[Job]:
        """Jobs whose time to be tried again has come; they are that once."""
        due = (
            sa.select(_J.id)
            .where(_J.state == JobState.QUEUED, _J.retry_at <= sa.func.now())
            .order_by(_J.retry_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = await self._connection.execute(
            sa.update(jobs).where(_J.id.in_(due)).values(retry_at=None).returning(jobs)
        )
        return [record(Job, r) for r in rows.mappings()]

    async def _close(self, job: Job, gone: Gone) -> None:
        """Record how an attempt ended; the first outcome stands."""
        await self._connection.execute(
            sa.update(job_attempts)
            .where(_A.job_id == job.id, _A.attempt == job.attempt, _A.outcome.is_(None))
            .values(
                outcome=gone.outcome,
                error_code=gone.code,
                error_message=gone.message,
                ended_at=sa.func.now(),
            )
        )

    async def of_job(self, job_id: UUID) -> list[JobAttempt]:
        """All attempts of a job, in order."""
        query = sa.select(job_attempts).where(_A.job_id == job_id).order_by(_A.attempt)
        return [record(JobAttempt, r) for r in (await self._connection.execute(query)).mappings()]

    async def nodes_tried(self, job_ids: Sequence[UUID]) -> dict[UUID, frozenset[UUID]]:
        """Nodes on which earlier attempts of these jobs were lost or failed."""
        query = sa.select(_A.job_id, _A.node_id).where(
            _A.job_id == sa.any_(sa.cast(list(job_ids), _UUIDS)),
            _A.outcome.in_((LOST, str(JobState.FAILED))),
        )
        tried: dict[UUID, set[UUID]] = {}
        for job_id, node_id in await self._connection.execute(query):
            tried.setdefault(job_id, set()).add(node_id)
        return {job_id: frozenset(found) for job_id, found in tried.items()}

    async def renew(
        self, node_id: UUID, refs: Sequence[tuple[UUID, int]], lease: timedelta
    ) -> list[tuple[UUID, int]]:
        """Renew the leases of a node's attempts; returns those that are not its own any more."""
        if not refs:
            return []
        given = (
            sa.func.unnest(
                sa.cast([r[0] for r in refs], _UUIDS), sa.cast([r[1] for r in refs], ARRAY(INTEGER))
            )
            .table_valued("job_id", "attempt")
            .render_derived("given")
        )
        # Locked in the order of ids, as reports do, so that neither waits for the other in a circle.
        held = (
            sa.select(_J.id)
            .join(given, sa.and_(_J.id == given.c.job_id, _J.attempt == given.c.attempt))
            .where(_J.node_id == node_id, _J.state.in_(IN_FLIGHT))
            .order_by(_J.id)
            .with_for_update(of=jobs)
            .cte("held")
        )
        rows = await self._connection.execute(
            sa.update(jobs)
            .where(_J.id == held.c.id)
            .values(lease_expires_at=sa.func.now() + lease)
            .returning(_J.id, _J.attempt)
        )
        renewed = {(row.id, row.attempt) for row in rows}
        return [ref for ref in refs if ref not in renewed]

    async def of_node(self, node_id: UUID) -> list[Job]:
        """Jobs in flight on a node, locked for what follows."""
        query = (
            sa.select(jobs)
            .where(_J.node_id == node_id, _J.state.in_(IN_FLIGHT))
            .order_by(_J.id)
            .with_for_update()
        )
        return [record(Job, r) for r in (await self._connection.execute(query)).mappings()]

    async def overdue(self, limit: int) -> list[Job]:
        """Jobs in flight whose lease ended, locked; those that another orchestrator holds are passed."""
        query = (
            sa.select(jobs)
            .where(_J.state.in_(IN_FLIGHT), _J.lease_expires_at < sa.func.now())
            .order_by(_J.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return [record(Job, r) for r in (await self._connection.execute(query)).mappings()]

    async def cancels_due(self, grace: timedelta, limit: int) -> list[Job]:
        """Jobs in flight whose cancel was asked for longer ago than `grace`, locked."""
        query = (
            sa.select(jobs)
            .where(_J.state.in_(IN_FLIGHT), _J.cancel_requested_at < sa.func.now() - grace)
            .order_by(_J.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return [record(Job, r) for r in (await self._connection.execute(query)).mappings()]

    async def _one(self, statement: sa.Executable) -> Job | None:
        row = (await self._connection.execute(statement)).mappings().first()
        return None if row is None else record(Job, row)
