"""Node pools and the operations that change their size."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JobState
from vyvo_dagster.domain.node import NodeState
from vyvo_dagster.domain.pool import OPERATION, Member, OperationState, Policy, ScalerKind
from vyvo_dagster.store.node_tables import nodes
from vyvo_dagster.store.pool_tables import node_pool_operations, node_pools
from vyvo_dagster.store.rows import page, record
from vyvo_dagster.store.tables import jobs

__all__ = ["Operation", "Pool", "PoolRepository"]

_P = node_pools.c
_O = node_pool_operations.c
_PLANS = 100
_BUSY = (JobState.DISPATCHED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Pool:
    """A row of node_pools. `members` are names of nodes, in order."""

    id: UUID
    name: str
    scaler: ScalerKind
    config: Mapping[str, Any]
    host: str | None
    models: Sequence[str]
    min_size: int
    max_size: int
    queue_depth_target: int | None
    cool_down_seconds: int
    drain_seconds: int
    join_seconds: int
    members: Sequence[str]
    scaled_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def policy(self) -> Policy:
        """Its scaling policy."""
        return Policy(
            self.min_size, self.max_size, self.queue_depth_target,
            timedelta(seconds=self.cool_down_seconds),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of node_pool_operations."""

    id: UUID
    pool_id: UUID
    state: OperationState
    dry_run: bool
    from_size: int
    size: int
    reason: str
    requested_by: str
    plan: Mapping[str, Any]
    log: str
    error_code: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class PoolRepository:
    """SQL over node_pools and node_pool_operations."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, *, id: UUID, name: str, **values: Any) -> Pool:
        """Insert a pool, or replace all of one but its nodes."""
        changed = {**values, "updated_at": sa.func.now()}
        row = await self._connection.execute(
            insert(node_pools)
            .values(id=id, name=name, **changed)
            .on_conflict_do_update(index_elements=["name"], set_=changed)
            .returning(node_pools)
        )
        return record(Pool, row.mappings().one())

    async def get(self, name: str, *, lock: bool = False) -> Pool | None:
        """One pool; with `lock` no other transaction changes it meanwhile."""
        query = sa.select(node_pools).where(_P.name == name)
        found = await self._connection.execute(query.with_for_update() if lock else query)
        row = found.mappings().first()
        return None if row is None else record(Pool, row)

    async def browse(self, cursor: UUID | None, limit: int) -> list[Pool]:
        """Newest first; one more than `limit`."""
        rows = await self._connection.execute(page(sa.select(node_pools), _P.id, cursor, limit))
        return [record(Pool, r) for r in rows.mappings()]

    async def all(self) -> list[Pool]:
        """Every pool."""
        rows = await self._connection.execute(sa.select(node_pools).order_by(_P.name))
        return [record(Pool, r) for r in rows.mappings()]

    async def delete(self, id: UUID) -> None:
        """Delete a pool and its history."""
        await self._connection.execute(sa.delete(node_pools).where(_P.id == id))

    async def members(self, pool: Pool) -> list[Member]:
        """A pool's nodes with how many jobs each runs; one that never joined is not ready."""
        running = (
            sa.select(sa.func.count())
            .where(jobs.c.node_id == nodes.c.id, jobs.c.state.in_(_BUSY))
            .correlate(nodes)
            .scalar_subquery()
        )
        rows = await self._connection.execute(
            sa.select(
                nodes.c.name, nodes.c.state, nodes.c.cordoned, running.label("running")
            ).where(nodes.c.name.in_(list(pool.members)))
        )
        known = {
            row.name: Member(row.name, row.running, row.state == NodeState.READY, row.cordoned)
            for row in rows
        }
        return [known.get(name) or Member(name, 0, ready=False) for name in pool.members]

    async def node_ids(self, names: Sequence[str]) -> dict[str, UUID]:
        """Name → id of those nodes that ever joined."""
        rows = await self._connection.execute(
            sa.select(nodes.c.name, nodes.c.id).where(nodes.c.name.in_(list(names)))
        )
        return {row.name: row.id for row in rows}

    async def taken_names(self, pool: Pool) -> set[str]:
        """Names such as this pool gives that nodes of other people have now.

        Those that its own changes added since the last one that succeeded are its own: they may
        have joined before that failed, or before its worker died.
        """
        made = await self._connection.execute(
            sa.select(_O.state, _O.plan)
            .where(_O.pool_id == pool.id, _O.dry_run.is_(False))
            .order_by(_O.id.desc())
            .limit(_PLANS)
        )
        own = set(pool.members)
        for row in made:
            if row.state == OperationState.SUCCEEDED:
                break
            own.update(row.plan.get("add", ()))
        rows = await self._connection.execute(
            sa.select(nodes.c.name).where(
                nodes.c.name.startswith(f"{pool.name}-", autoescape=True),
                nodes.c.state.in_([NodeState.READY, NodeState.SUSPECT]),
            )
        )
        return {row.name for row in rows} - own

    async def waiting(self, pool: Pool) -> int:
        """Jobs that wait for a node, of the pool's models, or of all where it names none."""
        query = sa.select(sa.func.count()).where(jobs.c.state == JobState.QUEUED)
        if pool.models:
            query = query.where(jobs.c.model_id.in_(list(pool.models)))
        return int((await self._connection.execute(query)).scalar_one())

    async def add_operation(
        self, pool: Pool, *, id: UUID, size: int, dry_run: bool, reason: str, requested_by: str
    ) -> Operation | None:
        """Queue a change of size; None while another is under way."""
        row = await self._connection.execute(
            insert(node_pool_operations)
            .values(
                id=id, pool_id=pool.id, state=OperationState.QUEUED, dry_run=dry_run,
                from_size=len(pool.members), size=size, reason=reason, requested_by=requested_by,
            )
            .on_conflict_do_nothing()
            .returning(node_pool_operations)
        )  # fmt: skip
        found = row.mappings().first()
        return None if found is None else record(Operation, found)

    async def operation(self, pool_id: UUID, id: UUID) -> Operation | None:
        """One operation of a pool."""
        query = sa.select(node_pool_operations).where(_O.id == id, _O.pool_id == pool_id)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(Operation, row)

    async def operations(self, pool_id: UUID, cursor: UUID | None, limit: int) -> list[Operation]:
        """Newest first; one more than `limit`."""
        query = sa.select(node_pool_operations).where(_O.pool_id == pool_id)
        rows = await self._connection.execute(page(query, _O.id, cursor, limit))
        return [record(Operation, r) for r in rows.mappings()]

    async def under_way(self, pool_id: UUID) -> bool:
        """Whether an operation of the pool has not ended."""
        query = sa.select(sa.exists().where(_O.pool_id == pool_id, _open()))
        return bool((await self._connection.execute(query)).scalar_one())

    async def failed_at(self, pool_id: UUID) -> datetime | None:
        """When the pool's last change failed; None where it did not."""
        last = await self._connection.execute(
            sa.select(_O.state, _O.finished_at)
            .where(_O.pool_id == pool_id, _O.dry_run.is_(False))
            .order_by(_O.id.desc())
            .limit(1)
        )
        row = last.first()
        return row.finished_at if row is not None and row.state == OperationState.FAILED else None

    async def claim(
        self, worker: UUID, host: str, kinds: Collection[ScalerKind], lease: timedelta
    ) -> tuple[Operation, Pool] | None:
        """Take the oldest operation that no worker has, or whose worker died; it is planned anew."""
        due = (
            sa.select(_O.id)
            .join(node_pools, _P.id == _O.pool_id)
            .where(
                _open(),
                sa.or_(_O.lease_expires_at.is_(None), _O.lease_expires_at < sa.func.now()),
                _P.scaler.in_(list(kinds)),
                sa.or_(_P.host.is_(None), _P.host == host),
            )
            .order_by(_O.id)
            .limit(1)
            .with_for_update(of=node_pool_operations, skip_locked=True)
        )
        claimed = await self._connection.execute(
            sa.update(node_pool_operations)
            .where(_O.id.in_(due))
            .values(
                state=OperationState.PLANNING, claimed_by=worker,
                lease_expires_at=sa.func.now() + lease,
                started_at=sa.func.coalesce(_O.started_at, sa.func.now()),
            )
            .returning(node_pool_operations)
        )  # fmt: skip
        row = claimed.mappings().first()
        if row is None:
            return None
        pool = await self._connection.execute(sa.select(node_pools).where(_P.id == row["pool_id"]))
        return record(Operation, row), record(Pool, pool.mappings().one())

    async def advance(self, id: UUID, worker: UUID, to: OperationState, **values: Any) -> bool:
        """Move an operation on; False when it is no longer this worker's, or cannot go there."""
        if to in OPERATION.terminal:
            values |= {"finished_at": sa.func.now(), "lease_expires_at": None}
        done = await self._connection.execute(
            sa.update(node_pool_operations)
            .where(_O.id == id, _O.claimed_by == worker, _O.state.in_(OPERATION.before(to)))
            .values(state=to, **values)
        )
        return done.rowcount > 0

    async def renew(self, id: UUID, worker: UUID, lease: timedelta, log: str, limit: int) -> bool:
        """Renew a worker's lease and add to the log, up to `limit` characters of it in all."""
        done = await self._connection.execute(
            sa.update(node_pool_operations)
            .where(_O.id == id, _O.claimed_by == worker, _open())
            .values(
                lease_expires_at=sa.func.now() + lease,
                log=sa.func.left(_O.log.concat(log), limit),
            )
        )  # fmt: skip
        return done.rowcount > 0

    async def set_members(self, id: UUID, members: Sequence[str]) -> None:
        """Note which nodes a pool has from now on."""
        await self._connection.execute(
            sa.update(node_pools)
            .where(_P.id == id)
            .values(members=list(members), scaled_at=sa.func.now())
        )


def _open() -> sa.ColumnElement[bool]:
    return _O.state.not_in(OPERATION.terminal)
