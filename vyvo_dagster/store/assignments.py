"""Assignments: which version should be loaded on which node, and what its agent sees of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.node import ASSIGNMENT, AssignmentState, NodeState
from vyvo_dagster.store.node_tables import assignments, nodes
from vyvo_dagster.store.notify import REGISTRY_CHANNEL, notify
from vyvo_dagster.store.records import Assignment
from vyvo_dagster.store.rows import record
from vyvo_dagster.store.tables import model_versions

__all__ = ["AssignmentRepository", "Observation"]

_A = assignments.c
_IN_FORCE = _A.state != AssignmentState.REMOVED
_ARROWS = ", ".join(
    f"('{before}', '{after}')" for before, afters in ASSIGNMENT.arrows.items() for after in afters
)


@dataclass(frozen=True, slots=True)
class Observation:
    """What an agent reports of one assignment."""

    id: UUID
    state: AssignmentState
    detail: str | None
    slots: int


# Locked in the order of ids, so that those of several api processes cannot wait in a circle.
_OBSERVE = sa.text(f"""
with given as (
  select * from unnest(cast(:ids as uuid[]), cast(:nodes as uuid[]), cast(:states as text[]),
    cast(:details as text[]), cast(:slots as int[])) as g (id, node_id, state, detail, slots)
), held as (
  select a.id, a.state as before, g.state, g.detail, g.slots
  from assignments a join given g on g.id = a.id and g.node_id = a.node_id
  order by a.id for update of a
)
update assignments a set state = h.state, detail = h.detail, slots = h.slots, updated_at = now(),
  ready_at = case when h.state = '{AssignmentState.READY}' then now() else a.ready_at end
from held h
where a.id = h.id and (h.before, h.state) in ({_ARROWS})
returning a.id, h.before
""")  # noqa: S608 - members of an enum


def _select() -> sa.Select[Any]:
    return sa.select(assignments, model_versions.c.model_id, model_versions.c.version).join(
        model_versions, model_versions.c.id == _A.version_id
    )


class AssignmentRepository:
    """SQL over assignments."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def request(
        self, *, id: UUID, node_id: UUID, version_id: UUID, on_demand: bool = False
    ) -> Assignment:
        """The assignment in force of this version on this node, made if there is none.

        One that failed or is being removed is requested again. One that was made on demand stays
        when it is asked for otherwise.
        """
        again = (AssignmentState.FAILED, AssignmentState.REMOVING)
        await self._connection.execute(
            insert(assignments)
            .values(
                id=id,
                node_id=node_id,
                version_id=version_id,
                state=AssignmentState.REQUESTED,
                on_demand=on_demand,
            )
            .on_conflict_do_update(
                index_elements=["node_id", "version_id"],
                index_where=sa.text("state <> 'removed'"),
                set_={
                    "state": AssignmentState.REQUESTED,
                    "detail": None,
                    "replaced_by": None,
                    "updated_at": sa.func.now(),
                },
                where=_A.state.in_(again),
            )
        )
        if not on_demand:
            await self._connection.execute(
                sa.update(assignments)
                .where(_A.node_id == node_id, _A.version_id == version_id, _IN_FORCE, _A.on_demand)
                .values(on_demand=False)
            )
        await notify(self._connection, REGISTRY_CHANNEL, str(node_id))
        row = (
            (
                await self._connection.execute(
                    _select().where(_A.node_id == node_id, _A.version_id == version_id, _IN_FORCE)
                )
            )
            .mappings()
            .one()
        )
        return record(Assignment, row)

    async def get(self, node_id: UUID, id: UUID) -> Assignment | None:
        """One assignment of a node."""
        row = (
            (await self._connection.execute(_select().where(_A.id == id, _A.node_id == node_id)))
            .mappings()
            .first()
        )
        return None if row is None else record(Assignment, row)

    async def remove(self, node_id: UUID, id: UUID) -> Assignment | None:
        """Ask for an assignment's removal; repeats change nothing. None when there is none."""
        await self._connection.execute(
            sa.update(assignments)
            .where(
                _A.id == id,
                _A.node_id == node_id,
                _A.state.in_(ASSIGNMENT.before(AssignmentState.REMOVING)),
            )
            .values(state=AssignmentState.REMOVING, updated_at=sa.func.now())
        )
        await notify(self._connection, REGISTRY_CHANNEL, str(node_id))
        return await self.get(node_id, id)

    async def of_node(self, node_id: UUID) -> list[Assignment]:
        """A node's assignments in force, oldest first, those being removed included."""
        query = _select().where(_A.node_id == node_id, _IN_FORCE).order_by(_A.id)
        return [record(Assignment, r) for r in (await self._connection.execute(query)).mappings()]

    async def of_nodes(self, node_ids: list[UUID]) -> list[Assignment]:
        """The assignments in force of several nodes, oldest first."""
        query = _select().where(_A.node_id.in_(node_ids), _IN_FORCE).order_by(_A.id)
        return [record(Assignment, r) for r in (await self._connection.execute(query)).mappings()]

    async def observe(
        self, seen: Sequence[tuple[UUID, Observation]]
    ) -> dict[UUID, AssignmentState]:
        """Record what agents see, each with its node; of those that changed, the state before.

        An arrow that the state machine lacks is passed over: a report that crossed with a
        removal must not bring the assignment back.
        """
        rows = await self._connection.execute(
            _OBSERVE,
            {
                "ids": [observed.id for _, observed in seen],
                "nodes": [node_id for node_id, _ in seen],
                "states": [str(observed.state) for _, observed in seen],
                "details": [observed.detail for _, observed in seen],
                "slots": [observed.slots for _, observed in seen],
            },
        )
        changed = {row.id: AssignmentState(row.before) for row in rows}
        if changed:
            await notify(self._connection, REGISTRY_CHANNEL, str(seen[0][0]))
        return changed

    async def restart(self, node_id: UUID) -> None:
        """A node joined with a new boot: nothing that it had loaded counts any more."""
        loaded = (
            AssignmentState.PULLING,
            AssignmentState.LOADING,
            AssignmentState.READY,
            AssignmentState.FAILED,
        )
        await self._connection.execute(
            sa.update(assignments)
            .where(_A.node_id == node_id, _A.state.in_(loaded))
            .values(state=AssignmentState.REQUESTED, detail=None, updated_at=sa.func.now())
        )

    async def placeable(self) -> list[Assignment]:
        """Ready assignments of nodes that are not lost; what placement reads."""
        query = (
            _select()
            .join(nodes, nodes.c.id == _A.node_id)
            .where(_A.state == AssignmentState.READY, nodes.c.state != NodeState.LOST)
        )
        return [record(Assignment, r) for r in (await self._connection.execute(query)).mappings()]

    async def ready_nodes(self, version_id: UUID) -> int:
        """How many ready nodes have the version ready."""
        query = (
            sa.select(sa.func.count())
            .select_from(assignments)
            .join(nodes, nodes.c.id == _A.node_id)
            .where(
                _A.version_id == version_id,
                _A.state == AssignmentState.READY,
                nodes.c.state == NodeState.READY,
            )
        )
        return int((await self._connection.execute(query)).scalar_one())
