"""The dispatcher's hot path: what is in flight, and the claim that makes attempts.

One transaction a turn. It begins by taking a lock that all orchestrators share, so that what it
counts stays true until it commits and no slot is given twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JobState
from vyvo_dagster.protocol.order import Order
from vyvo_dagster.store.raw import raw_of

__all__ = ["Dispatch", "DispatchRepository"]

# Any constant of ours. A holder that stands still for 5 s loses its session and with it the lock.
_LOCK = 0x76796469
_STILL_MS = 5000


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A placement: this job to this assignment."""

    job_id: UUID
    node_id: UUID
    assignment_id: UUID


_BEGIN: Final = """
select set_config('idle_in_transaction_session_timeout', %(still)s, true),
  set_config('lock_timeout', %(still)s, true), pg_advisory_xact_lock(%(lock)s)
"""

# A statement of its own, since one sees what was committed before it began, not what was when its
# lock was given.
_IN_FLIGHT: Final = """
select assignment_id, count(*) from jobs
where state in ('dispatched', 'running') group by assignment_id
"""

# A row that another transaction holds is waited for, not passed over: if that one is rolled back,
# the job still waits. No circle of waits can come of it: whoever else holds several rows of jobs
# that wait passes over those that are locked.
_CLAIM: Final = """
with given as (
  select * from unnest(
    cast(%(job)s as uuid[]), cast(%(node)s as uuid[]), cast(%(assignment)s as uuid[])
  ) as g (job_id, node_id, assignment_id)
), claimed as (
  update jobs j set state = %(dispatched)s, attempt = j.attempt + 1, node_id = g.node_id,
    assignment_id = g.assignment_id, dispatched_at = now(), lease_expires_at = now() + %(lease)s,
    progress = null, started_at = null
  from given g
  where j.id = g.job_id and j.state = %(queued)s and j.retry_at is null and j.expires_at > now()
  returning j.id, j.attempt, j.node_id, j.assignment_id, j.model_id, j.version,
    cast(j.input as text) as input, j.timeout_seconds, j.traceparent
), made as (
  insert into job_attempts (job_id, attempt, node_id, assignment_id)
  select id, attempt, node_id, assignment_id from claimed
), used as (
  update assignments a set used_at = now()
  from (select distinct assignment_id from claimed) c
  where a.id = c.assignment_id and a.on_demand
    and coalesce(a.used_at < now() - interval '10 seconds', true)
)
select * from claimed
"""

# An agent names in each heartbeat what it holds, which renews the lease: one that was never
# renewed belongs to an order that no agent has read.
_UNHEARD = sa.text("""
select id, attempt, node_id, assignment_id, model_id, version, cast(input as text),
  timeout_seconds, traceparent
from jobs
where state = :dispatched and dispatched_at < now() - :silence
  and lease_expires_at <= dispatched_at + :lease
  and (cast(:after as uuid) is null or id > :after)
order by id limit :limit
""")


class DispatchRepository:
    """SQL of the dispatcher's turn."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def begin(self) -> dict[UUID, int]:
        """Wait for this orchestrator's turn; then the attempts in flight, by assignment.

        Raises Unavailable, by way of the transaction, where another holds the turn too long.
        """
        raw = await raw_of(self._connection)
        async with raw.pipeline():
            await raw.execute(_BEGIN, {"still": str(_STILL_MS), "lock": _LOCK})
            found = await raw.execute(_IN_FLIGHT)
        return {id_: int(count) for id_, count in await found.fetchall()}

    async def claim(self, placed: Sequence[Dispatch], lease: timedelta) -> list[Order]:
        """Make an attempt of each job that still waits; the others are left out of the answer."""
        if not placed:
            return []
        rows = await (await raw_of(self._connection)).execute(
            _CLAIM,
            {
                "job": [p.job_id for p in placed],
                "node": [p.node_id for p in placed],
                "assignment": [p.assignment_id for p in placed],
                "queued": JobState.QUEUED.value,
                "dispatched": JobState.DISPATCHED.value,
                "lease": lease,
            },
        )
        return [Order(*row) for row in await rows.fetchall()]

    async def unheard(
        self, silence: timedelta, lease: timedelta, after: UUID | None, limit: int
    ) -> list[Order]:
        """Attempts made `silence` ago or longer of which no agent has told: their orders are lost.

        Args:
            lease: as `claim` was given it.
            after: jobs after this one, in the order of ids.
        """
        rows = await self._connection.execute(
            _UNHEARD,
            {
                "silence": silence,
                "lease": lease,
                "after": after,
                "limit": limit,
                "dispatched": JobState.DISPATCHED.value,
            },
        )
        return [Order(*row) for row in rows]
