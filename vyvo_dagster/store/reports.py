"""What agents report of attempts, many at a time: each statement is for a whole batch.

`lock` comes first and in the order of ids, so that batches of several nodes, heartbeats and the
orchestrator's duties cannot wait for each other in a circle. Who holds the locks decides from the
rows; the statements name the fencing token all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BOOLEAN, DOUBLE_PRECISION, INTEGER, TEXT
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JobState
from vyvo_dagster.store.jobs import IN_FLIGHT
from vyvo_dagster.store.records import JobAttempt
from vyvo_dagster.store.rows import record
from vyvo_dagster.store.tables import job_attempts, jobs

__all__ = ["Advance", "End", "ReportRepository", "ReportedJob"]

_IN_FLIGHT = ", ".join(f"'{state}'" for state in IN_FLIGHT)
_IDS = ARRAY(PG_UUID(as_uuid=True))


@dataclass(slots=True)
class ReportedJob:
    """Of a row of jobs, what a report is judged by."""

    id: UUID
    tenant: str
    model_id: str
    attempt: int
    node_id: UUID | None
    state: JobState
    cancel_requested_at: datetime | None
    created_at: datetime
    dispatched_at: datetime | None


@dataclass(frozen=True, slots=True)
class Advance:
    """An attempt of this node runs; `fraction` None leaves its progress."""

    job_id: UUID
    attempt: int
    fraction: float | None


@dataclass(frozen=True, slots=True)
class End:
    """An attempt ends its job. `output` and `timings` are JSON text.

    `started` where the start comes with the end; `fraction` None leaves the progress.
    """

    job_id: UUID
    attempt: int
    state: JobState
    started: bool
    fraction: float | None
    output: str | None
    error_code: str | None
    error_message: str | None
    timings: str


_LOCKED = (
    jobs.c.id, jobs.c.tenant, jobs.c.model_id, jobs.c.attempt, jobs.c.node_id, jobs.c.state,
    jobs.c.cancel_requested_at, jobs.c.created_at, jobs.c.dispatched_at,
)  # fmt: skip

_ADVANCE = sa.text(f"""
    update jobs set state = '{JobState.RUNNING}',
        started_at = coalesce(jobs.started_at, now()),
        progress = coalesce(given.fraction, jobs.progress)
    from unnest(:ids, :attempts, :fractions) as given(id, attempt, fraction)
    where jobs.id = given.id and jobs.attempt = given.attempt and jobs.node_id = :node_id
        and jobs.state in ({_IN_FLIGHT})
""").bindparams(  # noqa: S608 - members of an enum
    sa.bindparam("node_id", type_=PG_UUID(as_uuid=True)),
    sa.bindparam("ids", type_=_IDS),
    sa.bindparam("attempts", type_=ARRAY(INTEGER)),
    sa.bindparam("fractions", type_=ARRAY(DOUBLE_PRECISION)),
)

# The attempt's row keeps its first outcome.
_END = sa.text(f"""
    with ended as (
        update jobs set state = given.state, output = given.output::jsonb,
            error_code = given.error_code, error_message = given.error_message,
            timings = given.timings::jsonb, completed_at = now(), lease_expires_at = null,
            started_at = coalesce(
                jobs.started_at, case when given.started then now() else jobs.dispatched_at end),
            progress = case when given.state = '{JobState.SUCCEEDED}' then 1.0
                else coalesce(given.fraction, jobs.progress) end
        from unnest(:ids, :attempts, :states, :starts, :fractions, :outputs, :codes, :messages,
                    :timings)
            as given(id, attempt, state, started, fraction, output, error_code, error_message,
                     timings)
        where jobs.id = given.id and jobs.attempt = given.attempt and jobs.node_id = :node_id
            and jobs.state in ({_IN_FLIGHT})
        returning jobs.id, jobs.attempt, jobs.state, jobs.error_code, jobs.error_message
    )
    update job_attempts set outcome = ended.state, error_code = ended.error_code,
        error_message = ended.error_message, ended_at = now()
    from ended
    where job_attempts.job_id = ended.id and job_attempts.attempt = ended.attempt
        and job_attempts.outcome is null
    returning ended_at
""").bindparams(  # noqa: S608 - members of enums
    sa.bindparam("node_id", type_=PG_UUID(as_uuid=True)),
    sa.bindparam("ids", type_=_IDS),
    sa.bindparam("attempts", type_=ARRAY(INTEGER)),
    sa.bindparam("starts", type_=ARRAY(BOOLEAN)),
    sa.bindparam("fractions", type_=ARRAY(DOUBLE_PRECISION)),
    *(
        sa.bindparam(name, type_=ARRAY(TEXT))
        for name in ("states", "outputs", "codes", "messages", "timings")
    ),
)


class ReportRepository:
    """SQL over jobs and job_attempts, as reports change them."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def lock(self, ids: Sequence[UUID]) -> dict[UUID, ReportedJob]:
        """Those of `ids` that exist, locked until the transaction ends."""
        query = sa.select(*_LOCKED).where(jobs.c.id == sa.any_(sa.cast(list(ids), _IDS)))
        rows = await self._connection.execute(query.order_by(jobs.c.id).with_for_update())
        return {r.id: ReportedJob(*r[:5], JobState(r.state), *r[6:]) for r in rows}

    async def advance(self, node_id: UUID, items: Sequence[Advance]) -> None:
        """Mark attempts as running, with what is known of their progress."""
        if items:
            await self._connection.execute(
                _ADVANCE,
                {
                    "node_id": node_id,
                    "ids": [i.job_id for i in items],
                    "attempts": [i.attempt for i in items],
                    "fractions": [i.fraction for i in items],
                },
            )

    async def end(self, node_id: UUID, items: Sequence[End]) -> datetime | None:
        """End jobs by their attempts; when that was, by the database's clock."""
        if not items:
            return None
        rows = await self._connection.execute(
            _END,
            {
                "node_id": node_id,
                "ids": [i.job_id for i in items],
                "attempts": [i.attempt for i in items],
                "states": [str(i.state) for i in items],
                "starts": [i.started for i in items],
                "fractions": [i.fraction for i in items],
                "outputs": [i.output for i in items],
                "codes": [i.error_code for i in items],
                "messages": [i.error_message for i in items],
                "timings": [i.timings for i in items],
            },
        )
        first = rows.first()
        return None if first is None else first.ended_at

    async def attempts(
        self, keys: Sequence[tuple[UUID, int]]
    ) -> dict[tuple[UUID, int], JobAttempt]:
        """Attempts by job and number; they tell a repeated report from a stale one."""
        if not keys:
            return {}
        given = (
            sa.func.unnest(
                sa.cast([k[0] for k in keys], _IDS), sa.cast([k[1] for k in keys], ARRAY(INTEGER))
            )
            .table_valued("job_id", "attempt")
            .render_derived("given")
        )
        query = sa.select(job_attempts).join(
            given,
            sa.and_(
                job_attempts.c.job_id == given.c.job_id, job_attempts.c.attempt == given.c.attempt
            ),
        )
        rows = (await self._connection.execute(query)).mappings()
        return {(r["job_id"], r["attempt"]): record(JobAttempt, r) for r in rows}
