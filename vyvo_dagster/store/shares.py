"""Fair shares: the weights of tenants, and what each has waiting and in flight."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.store.jobs import IN_FLIGHT
from vyvo_dagster.store.notify import REGISTRY_CHANNEL, notify
from vyvo_dagster.store.rows import record
from vyvo_dagster.store.tables import fair_shares, jobs

__all__ = ["FairShare", "QueueRow", "ShareRepository"]

_S = fair_shares.c
_J = jobs.c
_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class FairShare:
    """A row of fair_shares; `model_id` None stands for all models."""

    tenant: str
    model_id: str | None
    weight: float
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class QueueRow:
    """Jobs of one version, class and tenant; `oldest_seconds` is None where none waits."""

    model_id: str
    version: str
    priority: Priority
    tenant: str
    depth: int
    oldest_seconds: float | None
    in_flight: int


class ShareRepository:
    """SQL over fair_shares."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def all(self) -> list[FairShare]:
        """All weights, by tenant and model."""
        query = sa.select(fair_shares).order_by(_S.tenant, _S.model_id).limit(_LIMIT)
        return [record(FairShare, r) for r in (await self._connection.execute(query)).mappings()]

    async def put(self, id: UUID, tenant: str, model_id: str | None, weight: float) -> FairShare:
        """Set a weight and tell dispatch."""
        values = {"weight": weight, "updated_at": sa.func.now()}
        row = (
            (
                await self._connection.execute(
                    insert(fair_shares)
                    .values(id=id, tenant=tenant, model_id=model_id, **values)
                    .on_conflict_do_update(index_elements=["tenant", "model_id"], set_=values)
                    .returning(fair_shares)
                )
            )
            .mappings()
            .one()
        )
        await notify(self._connection, REGISTRY_CHANNEL, tenant)
        return record(FairShare, row)

    async def delete(self, tenant: str, model_id: str | None) -> bool:
        """Forget a weight and tell dispatch; False where there is none."""
        result = await self._connection.execute(
            sa.delete(fair_shares).where(
                _S.tenant == tenant, _S.model_id.is_not_distinct_from(model_id)
            )
        )
        await notify(self._connection, REGISTRY_CHANNEL, tenant)
        return result.rowcount > 0

    async def queues(self, tenant: str | None, model_id: str | None, limit: int) -> list[QueueRow]:
        """What waits or is in flight, the deepest first, of `tenant` unless that is None."""
        waits = _J.state == JobState.QUEUED
        depth = sa.func.count().filter(waits)
        age = sa.func.extract("epoch", sa.func.now() - sa.func.min(_J.created_at).filter(waits))
        flying = _J.state.in_(IN_FLIGHT)
        keys = (_J.model_id, _J.version, _J.priority, _J.tenant)
        query = (
            sa.select(*keys, depth, age, sa.func.count().filter(flying))
            .where(sa.or_(waits, flying))
            .group_by(*keys)
            .order_by(depth.desc(), *keys)
            .limit(limit)
        )
        for column, value in ((_J.tenant, tenant), (_J.model_id, model_id)):
            if value is not None:
                query = query.where(column == value)
        return [
            QueueRow(
                model_id=model,
                version=version,
                priority=Priority(priority),
                tenant=of,
                depth=int(waiting),
                oldest_seconds=_seconds(oldest),
                in_flight=int(held),
            )
            for model, version, priority, of, waiting, oldest, held in await self._connection.execute(
                query
            )
        ]


def _seconds(value: Any) -> float | None:
    """Postgres gives a numeric, and null for the age of nothing."""
    return None if value is None else float(value)
