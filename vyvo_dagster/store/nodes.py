"""Nodes, their capabilities and their history."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.node import HeartbeatPolicy, NodeEventKind, NodeState
from vyvo_dagster.store.node_tables import assignments, node_capabilities, node_events, nodes
from vyvo_dagster.store.notify import REGISTRY_CHANNEL, notify
from vyvo_dagster.store.records import Node, NodeEvent
from vyvo_dagster.store.rows import page, record

__all__ = ["NewEvent", "NodeRepository", "Quiet"]

_N = nodes.c
_E = node_events.c


@dataclass(frozen=True, slots=True)
class Quiet:
    """A node, the state that it was in, and how long nothing was heard of it."""

    id: UUID
    name: str
    state: NodeState
    silence: timedelta


@dataclass(frozen=True, slots=True)
class NewEvent:
    """What is to be added to a node's history."""

    id: UUID
    node_id: UUID
    kind: NodeEventKind
    detail: Mapping[str, Any]


def _select() -> sa.Select[Any]:
    capabilities = sa.func.coalesce(
        node_capabilities.c.capabilities, sa.literal({}, node_capabilities.c.capabilities.type)
    ).label("capabilities")
    return sa.select(nodes, capabilities).outerjoin(
        node_capabilities, node_capabilities.c.node_id == _N.id
    )


class NodeRepository:
    """SQL over nodes, node_capabilities and node_events; heartbeats are in `store.beats`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def join(
        self,
        *,
        id: UUID,
        name: str,
        boot_id: UUID,
        labels: Mapping[str, str],
        capabilities: Mapping[str, Any],
    ) -> tuple[UUID, UUID | None]:
        """Insert or take over the node of that name, with a new boot.

        Returns the node's id, which is kept over rejoins, and the boot that it replaces.
        """
        old = (
            await self._connection.execute(
                sa.select(_N.id, _N.boot_id).where(_N.name == name).with_for_update()
            )
        ).first()
        values = {
            "state": NodeState.READY,
            "boot_id": boot_id,
            "labels": dict(labels),
            "last_heartbeat_at": sa.func.now(),
        }
        found = await self._connection.execute(
            insert(nodes)
            .values(id=id, name=name, **values)
            .on_conflict_do_update(index_elements=["name"], set_=values)
            .returning(_N.id)
        )
        node_id: UUID = found.scalar_one()
        caps = {"capabilities": dict(capabilities), "updated_at": sa.func.now()}
        await self._connection.execute(
            insert(node_capabilities)
            .values(node_id=node_id, **caps)
            .on_conflict_do_update(index_elements=["node_id"], set_=caps)
        )
        await notify(self._connection, REGISTRY_CHANNEL, str(node_id))
        return node_id, None if old is None or old.boot_id == boot_id else old.boot_id

    async def current(self, boots: Mapping[UUID, UUID]) -> dict[UUID, Node]:
        """Of these nodes, locked, those whose start is the given one and that are not lost."""
        rows = await self._connection.execute(
            _select()
            .where(_N.id.in_(boots), _N.state != NodeState.LOST)
            .order_by(_N.id)
            .with_for_update(of=nodes)
        )
        found = [record(Node, r) for r in rows.mappings()]
        return {node.id: node for node in found if boots[node.id] == node.boot_id}

    async def set_capabilities(self, id: UUID, capabilities: Mapping[str, Any]) -> None:
        """Note what a node has from now on."""
        await self._connection.execute(
            sa.update(node_capabilities)
            .where(node_capabilities.c.node_id == id)
            .values(capabilities=dict(capabilities), updated_at=sa.func.now())
        )
        await notify(self._connection, REGISTRY_CHANNEL, str(id))

    async def get(self, id: UUID) -> Node | None:
        """One node."""
        row = (await self._connection.execute(_select().where(_N.id == id))).mappings().first()
        return None if row is None else record(Node, row)

    async def browse(
        self,
        cursor: UUID | None,
        limit: int,
        state: NodeState | None = None,
        name: str | None = None,
    ) -> list[Node]:
        """Newest first."""
        query = _select()
        if state is not None:
            query = query.where(_N.state == state)
        if name is not None:
            query = query.where(_N.name == name)
        rows = await self._connection.execute(page(query, _N.id, cursor, limit))
        return [record(Node, r) for r in rows.mappings()]

    async def all(self) -> list[Node]:
        """Every node that is not lost; what placement reads."""
        rows = await self._connection.execute(_select().where(_N.state != NodeState.LOST))
        return [record(Node, r) for r in rows.mappings()]

    async def set_state(self, id: UUID, before: frozenset[NodeState], to: NodeState) -> bool:
        """Set the state of a node that is in one of `before`."""
        result = await self._connection.execute(
            sa.update(nodes).where(_N.id == id, _N.state.in_(before)).values(state=to)
        )
        await notify(self._connection, REGISTRY_CHANNEL, str(id))
        return result.rowcount > 0

    async def quiet(self, policy: HeartbeatPolicy, limit: int) -> list[tuple[Quiet, NodeState]]:
        """Move nodes whose silence changes their state, by the server's clock; each with its new state.

        One that another transaction holds is passed over: it may be heard just now.
        """
        rows = await self._connection.execute(
            sa.select(_N.id, _N.name, _N.state, sa.func.now() - _N.last_heartbeat_at)
            .where(
                _N.state != NodeState.LOST,
                _N.last_heartbeat_at <= sa.func.now() - policy.suspect_after,
            )
            .order_by(_N.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        found = [Quiet(id_, name, NodeState(state), silence) for id_, name, state, silence in rows]
        moved = [(q, policy.silent(q.state, q.silence)) for q in found]
        moved = [(quiet, to) for quiet, to in moved if to is not quiet.state]
        for to in {to for _, to in moved}:
            values: dict[str, Any] = {"state": to, "heard_since": None}
            if to is NodeState.SUSPECT:
                recent = _N.suspect_at > sa.func.now() - policy.forgets_after
                values["suspicions"] = sa.case((recent, _N.suspicions + 1), else_=1)
                values["suspect_at"] = sa.func.now()
            ids = [quiet.id for quiet, state in moved if state is to]
            await self._connection.execute(sa.update(nodes).where(_N.id.in_(ids)).values(**values))
        if moved:
            await notify(self._connection, REGISTRY_CHANNEL, str(moved[0][0].id))
        return moved

    async def set_flags(self, id: UUID, **flags: bool) -> bool:
        """Set cordoned or draining; a drain begins without a deadline, and its end leaves none."""
        values: dict[str, Any] = dict(flags)
        if "draining" in flags:
            began = sa.func.coalesce(_N.drain_started_at, sa.func.now())
            values["drain_started_at"] = began if flags["draining"] else None
            values |= {"drain_deadline_at": None, "drained_at": None}
        result = await self._connection.execute(
            sa.update(nodes).where(_N.id == id).values(**values)
        )
        if flags.get("draining") is False:
            # What has a successor elsewhere and is still here serves again.
            await self._connection.execute(
                sa.update(assignments).where(assignments.c.node_id == id).values(replaced_by=None)
            )
        await notify(self._connection, REGISTRY_CHANNEL, str(id))
        return result.rowcount > 0

    async def set_deadline(self, id: UUID, after: timedelta | None) -> None:
        """Say when the drain of a node ends its jobs; None waits for them."""
        deadline = None if after is None else sa.func.now() + after
        await self._connection.execute(
            sa.update(nodes).where(_N.id == id).values(drain_deadline_at=deadline)
        )

    async def add_event(
        self,
        *,
        id: UUID,
        node_id: UUID,
        kind: NodeEventKind,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Add to a node's history."""
        await self._connection.execute(
            sa.insert(node_events).values(
                id=id, node_id=node_id, kind=kind, detail=dict(detail or {})
            )
        )

    async def add_events(self, events: Sequence[NewEvent]) -> None:
        """Add to the histories of several nodes."""
        if events:
            await self._connection.execute(
                sa.insert(node_events), [dataclasses.asdict(event) for event in events]
            )

    async def events(self, node_id: UUID, cursor: UUID | None, limit: int) -> list[NodeEvent]:
        """A node's history, newest first."""
        query = sa.select(node_events).where(node_events.c.node_id == node_id)
        rows = await self._connection.execute(page(query, node_events.c.id, cursor, limit))
        return [record(NodeEvent, r) for r in rows.mappings()]

    async def purge_events(self, age: timedelta, limit: int) -> int:
        """Delete events that are older; how many, `limit` at most."""
        old = sa.select(_E.id).where(_E.created_at < sa.func.now() - age).limit(limit)
        result = await self._connection.execute(sa.delete(node_events).where(_E.id.in_(old)))
        return result.rowcount
