"""Assignments that must leave their node: it is lost, or it is being drained."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.node import ASSIGNMENT, AssignmentState, NodeState
from vyvo_dagster.store.jobs import IN_FLIGHT
from vyvo_dagster.store.node_tables import assignments, nodes
from vyvo_dagster.store.notify import REGISTRY_CHANNEL, notify

__all__ = ["DrainCount", "Leaving", "MoveRepository", "Moving"]

_A = assignments.c
_N = nodes.c
_IDS = ARRAY(PG_UUID(as_uuid=True))


@dataclass(frozen=True, slots=True)
class Leaving:
    """A node, locked, that is lost and has assignments, or that is being drained."""

    id: UUID
    name: str
    lost: bool
    overdue: bool
    """The deadline of its drain is over."""


@dataclass(frozen=True, slots=True)
class Moving:
    """An assignment in force on such a node, and how many jobs it runs."""

    id: UUID
    node_id: UUID
    version_id: UUID
    model_id: str
    version: str
    state: AssignmentState
    on_demand: bool
    replaced_by: UUID | None
    gpu_memory_bytes: int
    running: int


@dataclass(frozen=True, slots=True)
class DrainCount:
    """What is left of a drain: jobs, models without a successor, and models still loaded."""

    jobs: int
    to_move: Sequence[str]
    loaded: int


_FLIGHT = ", ".join(f"'{state}'" for state in IN_FLIGHT)
# Those that another transaction holds are heard of or joined just now: they are looked at again soon.
_LEAVING = sa.text(f"""
select n.id, n.name, n.state = '{NodeState.LOST}', coalesce(n.drain_deadline_at <= now(), false)
from nodes n
where (n.draining and n.drained_at is null) or (n.state = '{NodeState.LOST}' and exists (
  select from assignments a where a.node_id = n.id and a.state <> '{AssignmentState.REMOVED}'))
order by n.id for update of n skip locked
""")  # noqa: S608 - members of an enum

_MOVING = sa.text(f"""
select a.id, a.node_id, a.version_id, v.model_id, v.version, a.state, a.on_demand, a.replaced_by,
  cast(coalesce(v.resources->>'gpu_memory_bytes', '0') as bigint) as needs,
  (select count(*) from jobs j where j.node_id = a.node_id and j.assignment_id = a.id
    and j.state in ({_FLIGHT})) as running
from assignments a join model_versions v on v.id = a.version_id
where a.node_id = any(:nodes) and a.state <> '{AssignmentState.REMOVED}' order by a.id
""").bindparams(sa.bindparam("nodes", type_=_IDS))  # noqa: S608 - members of enums

_COUNT = sa.text(f"""
select n.id,
  (select count(*) from jobs j where j.node_id = n.id and j.state in ({_FLIGHT})),
  (select coalesce(array_agg(v.model_id || '@' || v.version order by a.id), '{{}}')
    from assignments a join model_versions v on v.id = a.version_id
    where a.node_id = n.id and not a.on_demand and a.replaced_by is null
      and a.state not in ('{AssignmentState.REMOVED}', '{AssignmentState.REMOVING}')),
  (select count(*) from assignments a
    where a.node_id = n.id and a.state <> '{AssignmentState.REMOVED}')
from nodes n where n.id = any(:nodes)
""").bindparams(sa.bindparam("nodes", type_=_IDS))  # noqa: S608 - members of enums


class MoveRepository:
    """SQL of what leaves nodes."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def leaving(self) -> list[Leaving]:
        """Lost nodes with assignments, and nodes whose drain is not over, locked."""
        return [Leaving(*row) for row in await self._connection.execute(_LEAVING)]

    async def moving(self, node_ids: Sequence[UUID]) -> list[Moving]:
        """The assignments in force on these nodes, oldest first."""
        rows = await self._connection.execute(_MOVING, {"nodes": list(node_ids)})
        return [
            Moving(
                row.id, row.node_id, row.version_id, row.model_id, row.version,
                AssignmentState(row.state), row.on_demand, row.replaced_by, row.needs, row.running,
            )
            for row in rows
        ]  # fmt: skip

    async def counts(self, node_ids: Sequence[UUID]) -> dict[UUID, DrainCount]:
        """What is left on nodes."""
        if not node_ids:
            return {}
        rows = await self._connection.execute(_COUNT, {"nodes": list(node_ids)})
        return {id_: DrainCount(jobs, names, loaded) for id_, jobs, names, loaded in rows}

    async def end(self, id: UUID, detail: str) -> None:
        """Remove an assignment of a lost node: its agent must join again before it is heard."""
        states = ASSIGNMENT.before(AssignmentState.REMOVING) | {AssignmentState.REMOVING}
        await self._set(id, states, state=AssignmentState.REMOVED, detail=detail)

    async def unload(self, id: UUID) -> None:
        """Ask the agent for an assignment's removal."""
        before = ASSIGNMENT.before(AssignmentState.REMOVING)
        await self._set(id, before, state=AssignmentState.REMOVING)

    async def succeed(self, id: UUID, successor: UUID) -> None:
        """Note which assignment elsewhere takes this one's place."""
        await self._set(id, frozenset(AssignmentState), replaced_by=successor)

    async def end_drain(self, node_id: UUID) -> None:
        """Note that a drain is over."""
        await self._connection.execute(
            sa.update(nodes).where(_N.id == node_id).values(drained_at=sa.func.now())
        )

    async def _set(self, id: UUID, before: frozenset[AssignmentState], **values: object) -> None:
        row = await self._connection.execute(
            sa.update(assignments)
            .where(_A.id == id, _A.state.in_(before))
            .values(**values, updated_at=sa.func.now())
            .returning(_A.node_id)
        )
        if (node_id := row.scalar()) is not None:
            await notify(self._connection, REGISTRY_CHANNEL, str(node_id))
