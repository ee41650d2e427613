"""Versions that jobs wait for, and where they are or could be loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JobState
from vyvo_dagster.domain.loading import Idle
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.store.models import SERVABLE
from vyvo_dagster.store.node_tables import assignments
from vyvo_dagster.store.tables import model_versions

__all__ = ["DemandRepository", "InForce", "Wanted"]

# Any constant of ours: one orchestrator at a time decides what is loaded.
_LOCK = 0x76796C64


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that jobs wait for."""

    version_id: UUID
    model_id: str
    version: str
    resources: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InForce:
    """An assignment in force, with what its version needs."""

    node_id: UUID
    version_id: UUID
    state: AssignmentState
    gpu_memory_bytes: int
    on_demand: bool


_WANTED = sa.text("""
select v.id, v.model_id, v.version, v.resources from model_versions v
cross join lateral (
  select j.id from jobs j where j.version_id = v.id and j.model_id = v.model_id
    and j.state = :queued and j.retry_at is null and j.expires_at > now()
  order by j.id limit 1
) oldest
where v.state = any(cast(:servable as text[])) and v.runner_image is not null
order by oldest.id limit :limit
""")
# A version that was just loaded counts as just used.
_IDLE = sa.text("""
select a.id, a.node_id, cast(coalesce(v.resources->>'gpu_memory_bytes', '0') as bigint),
  now() - greatest(a.used_at, a.ready_at, a.created_at)
from assignments a join model_versions v on v.id = a.version_id
where a.on_demand and a.state = any(cast(:settled as text[]))
  and not exists (select from jobs j where j.node_id = a.node_id and j.assignment_id = a.id
    and j.state in ('dispatched', 'running'))
  and not exists (select from jobs j where j.model_id = v.model_id and j.version_id = v.id
    and j.state = 'queued')
order by a.id
""")
_WAITING = sa.text("""
select id from jobs where version_id = :version and model_id = :model and state = :queued
order by id limit :limit
""")


class DemandRepository:
    """SQL of loading on demand."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def begin(self) -> bool:
        """Whether this transaction decides; False where another orchestrator's does now."""
        query = sa.select(sa.func.pg_try_advisory_xact_lock(_LOCK))
        return bool((await self._connection.execute(query)).scalar_one())

    async def wanted(self, limit: int) -> list[Wanted]:
        """Versions with jobs that wait and could be dispatched; that of the oldest job first."""
        rows = await self._connection.execute(
            _WANTED,
            {
                "servable": [state.value for state in SERVABLE],
                "queued": JobState.QUEUED.value,
                "limit": limit,
            },
        )
        return [Wanted(*row) for row in rows]

    async def in_force(self) -> list[InForce]:
        """All assignments in force, the oldest first."""
        query = (
            sa.select(
                assignments.c.node_id,
                assignments.c.version_id,
                assignments.c.state,
                model_versions.c.resources,
                assignments.c.on_demand,
            )
            .join(model_versions, model_versions.c.id == assignments.c.version_id)
            .where(assignments.c.state != AssignmentState.REMOVED)
            .order_by(assignments.c.updated_at)
        )
        return [
            InForce(
                node, version, AssignmentState(state), int(needs.get("gpu_memory_bytes", 0)), asked
            )
            for node, version, state, needs, asked in await self._connection.execute(query)
        ]

    async def idle(self) -> list[Idle]:
        """Assignments made on demand that run nothing and for whose version nobody waits."""
        settled = [AssignmentState.READY.value, AssignmentState.FAILED.value]
        return [Idle(*row) for row in await self._connection.execute(_IDLE, {"settled": settled})]

    async def waiting(self, wanted: Wanted, limit: int) -> Sequence[UUID]:
        """The first jobs that wait for a version."""
        rows = await self._connection.execute(
            _WAITING,
            {
                "version": wanted.version_id,
                "model": wanted.model_id,
                "queued": JobState.QUEUED.value,
                "limit": limit,
            },
        )
        return [row[0] for row in rows]
