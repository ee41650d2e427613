"""What could not be done: jobs that failed through no fault of their prediction, and stream
entries that nobody could read. And the way back: a job that has ended is queued again.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.job import JOB, PREDICTION_FAILED, JobState, Priority
from vyvo_dagster.store.records import DeadEntry, Job
from vyvo_dagster.store.rows import page, record
from vyvo_dagster.store.tables import artifacts, dead_entries, job_attempts, jobs

__all__ = ["DeadLetterRepository"]

_J = jobs.c
_E = dead_entries.c
_REOPENED = JOB.terminal & JOB.before(JobState.QUEUED)


class DeadLetterRepository:
    """SQL over dead letters."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def jobs(
        self, tenant: str | None, cursor: UUID | None, limit: int, model_id: str | None
    ) -> list[Job]:
        """Dead jobs, newest first, of `tenant` unless that is None; one more than `limit`."""
        query = sa.select(jobs).where(
            _J.state == JobState.FAILED, _J.error_code != PREDICTION_FAILED
        )
        for column, value in ((_J.tenant, tenant), (_J.model_id, model_id)):
            if value is not None:
                query = query.where(column == value)
        rows = await self._connection.execute(page(query, _J.id, cursor, limit))
        return [record(Job, r) for r in rows.mappings()]

    async def last_nodes(self, job_ids: Sequence[UUID]) -> dict[UUID, UUID]:
        """Job → the node of its last attempt."""
        last = (
            sa.select(job_attempts.c.job_id, job_attempts.c.node_id)
            .where(job_attempts.c.job_id.in_(list(job_ids)))
            .order_by(job_attempts.c.job_id, job_attempts.c.attempt.desc())
            .ext(distinct_on(job_attempts.c.job_id))
        )
        return {row.job_id: row.node_id for row in await self._connection.execute(last)}

    async def entries(self, cursor: UUID | None, limit: int) -> list[DeadEntry]:
        """Unreadable stream entries, newest first; one more than `limit`."""
        rows = await self._connection.execute(page(sa.select(dead_entries), _E.id, cursor, limit))
        return [record(DeadEntry, r) for r in rows.mappings()]

    async def bury(self, entries: Sequence[tuple[str, str, Mapping[str, str], str]]) -> None:
        """Keep (stream, entry id, fields, reason) of unreadable entries; a repeat changes nothing."""
        if entries:
            await self._connection.execute(
                insert(dead_entries).on_conflict_do_nothing(),
                [
                    {"id": uuid7(), "stream": stream, "entry_id": entry_id, "fields": dict(fields),
                     "reason": reason}
                    for stream, entry_id, fields, reason in entries
                ],
            )  # fmt: skip

    async def requeue(
        self,
        job_id: UUID,
        *,
        attempts: int,
        wait: timedelta,
        priority: Priority | None,
        key_id: UUID | None,
    ) -> Job | None:
        """Queue a job again that failed, expired or was canceled; None when it has not.

        Args:
            attempts: how many charged attempts it has from now on.
            wait: its new life in the queue.
            priority: None keeps it.
            key_id: the API key whose quota it counts against from now on.

        The attempt's number goes on rising, so a late report of the earlier life stays stale. What
        that life left (output, artifacts) makes room for what this one will.
        """
        row = (
            (
                await self._connection.execute(
                    sa.update(jobs)
                    .where(_J.id == job_id, _J.state.in_(_REOPENED))
                    .values(
                        state=JobState.QUEUED,
                        max_attempts=_J.attempt - _J.handed_back + attempts,
                        expires_at=sa.func.now() + wait,
                        requeued_at=sa.func.now(),
                        key_id=key_id,
                        priority=_J.priority if priority is None else priority,
                        retry_at=None,
                        node_id=None,
                        assignment_id=None,
                        lease_expires_at=None,
                        cancel_requested_at=None,
                        progress=None,
                        dispatched_at=None,
                        started_at=None,
                        completed_at=None,
                        error_code=None,
                        error_message=None,
                        output=None,
                        timings={},
                    )
                    .returning(jobs)
                )
            )
            .mappings()
            .first()
        )
        if row is None:
            return None
        await self._connection.execute(sa.delete(artifacts).where(artifacts.c.job_id == job_id))
        return record(Job, row)

    async def purge(self, age: timedelta, limit: int) -> int:
        """Delete unreadable entries that are older; how many, `limit` at most."""
        old = sa.select(_E.id).where(_E.created_at < sa.func.now() - age).limit(limit)
        result = await self._connection.execute(sa.delete(dead_entries).where(_E.id.in_(old)))
        return result.rowcount
