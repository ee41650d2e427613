"""Webhook deliveries.

They are made by the trigger `jobs_webhook` (migration 0005), in the transaction in which a job ends,
whichever statement ends it: none can forget to.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.webhook import DELIVERY, DeliveryState
from vyvo_dagster.store.records import WebhookDelivery
from vyvo_dagster.store.rows import record
from vyvo_dagster.store.tables import webhook_deliveries, webhook_secrets

__all__ = ["Claimed", "WebhookRepository"]

_D = webhook_deliveries.c
_S = webhook_secrets.c
# Walks from tenant to tenant by the index of due deliveries, so that it reads `most` of each and
# not all that one has waiting.
_DUE: Final = f"""
with recursive tenants as (
  (select min(tenant) as tenant from webhook_deliveries where state = '{DeliveryState.PENDING}')
  union all
  select (select min(d.tenant) from webhook_deliveries d
    where d.state = '{DeliveryState.PENDING}' and d.tenant > t.tenant)
  from tenants t where t.tenant is not null
), turns as (
  select o.id, o.next_try_at, o.turn from tenants t, lateral (
    select d.id, d.next_try_at, row_number() over (order by d.next_try_at) as turn
    from webhook_deliveries d
    where d.tenant = t.tenant and d.state = '{DeliveryState.PENDING}' and d.next_try_at <= now()
    order by d.next_try_at limit :most
  ) o where t.tenant <> all(:busy)
)
select d.id from webhook_deliveries d join turns on turns.id = d.id
where d.state = '{DeliveryState.PENDING}' and d.next_try_at <= now()
order by turns.turn, turns.next_try_at limit :most for update of d skip locked
"""  # noqa: S608 - members of an enum


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery to try now, with the secrets to sign with, the newest first."""

    delivery: WebhookDelivery
    payload: dict[str, Any]
    secrets: tuple[str, ...]


class WebhookRepository:
    """SQL over webhook_deliveries and webhook_secrets."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def set_secret(self, tenant: str, secret: str) -> None:
        """Set a tenant's secret; the one before goes on signing beside it for a while."""
        new = insert(webhook_secrets).values(tenant=tenant, secret=secret)
        await self._connection.execute(
            new.on_conflict_do_update(
                index_elements=[_S.tenant],
                set_={"secret": secret, "previous": _S.secret, "set_at": sa.func.now()},
            )
        )

    async def has_secret(self, tenant: str) -> bool:
        """Whether a tenant's deliveries can be signed."""
        query = sa.select(sa.exists().where(_S.tenant == tenant))
        return bool((await self._connection.execute(query)).scalar_one())

    async def claim(
        self, limit: int, lease: timedelta, overlap: timedelta, busy: Collection[str]
    ) -> list[Claimed]:
        """Take deliveries that are due, each with one more try; others take them after `lease`.

        Tenants take turns: the oldest of each, then the second oldest of each, so that a flood of one
        holds up no other's.

        Args:
            overlap: how long a replaced secret signs beside the new one.
            busy: tenants that have enough under way.
        """
        due = sa.text(_DUE).bindparams(
            sa.bindparam("busy", list(busy), type_=ARRAY(sa.Text)), sa.bindparam("most", limit)
        )
        claimed = (
            sa.update(webhook_deliveries)
            .where(_D.id.in_(due.columns(_D.id).scalar_subquery()))
            .values(tries=_D.tries + 1, next_try_at=sa.func.now() + lease)
            .returning(webhook_deliveries)
            .cte("claimed")
        )
        fresh = sa.case((_S.set_at > sa.func.now() - overlap, _S.previous))
        query = sa.select(claimed, _S.secret, fresh.label("previous")).outerjoin(
            webhook_secrets, _S.tenant == claimed.c.tenant
        )
        return [
            Claimed(
                record(WebhookDelivery, row), row["payload"],
                tuple(s for s in (row["secret"], row["previous"]) if s is not None),
            )
            for row in (await self._connection.execute(query)).mappings()
        ]  # fmt: skip

    async def settle(
        self, delivery: WebhookDelivery, *, status: int | None, error: str | None,
        again: float | None,
    ) -> None:  # fmt: skip
        """Note how a try went: delivered without an error, else tried `again` seconds later or failed.

        A try whose lease ran out, and that was therefore made by another since, changes nothing.
        """
        values: dict[str, Any] = {"last_status": status, "last_error": error}
        if error is None:
            values |= {"state": DeliveryState.DELIVERED, "delivered_at": sa.func.now()}
        elif again is None:
            values |= {"state": DeliveryState.FAILED}
        else:
            values |= {"next_try_at": sa.func.now() + timedelta(seconds=again)}
        await self._connection.execute(
            sa.update(webhook_deliveries)
            .where(
                _D.id == delivery.id, _D.tries == delivery.tries, _D.state == DeliveryState.PENDING
            )
            .values(**values)
        )

    async def of_job(self, job_id: UUID) -> list[WebhookDelivery]:
        """A job's deliveries, oldest first."""
        query = sa.select(webhook_deliveries).where(_D.job_id == job_id).order_by(_D.created_at)
        return [
            record(WebhookDelivery, r) for r in (await self._connection.execute(query)).mappings()
        ]

    async def redeliver(self, job_id: UUID, id: UUID) -> WebhookDelivery | None:
        """Try an ended delivery once more from the start; None where it has not ended."""
        row = (
            (
                await self._connection.execute(
                    sa.update(webhook_deliveries)
                    .where(_D.id == id, _D.job_id == job_id, _D.state.in_(DELIVERY.terminal))
                    .values(state=DeliveryState.PENDING, tries=0, next_try_at=sa.func.now())
                    .returning(webhook_deliveries)
                )
            )
            .mappings()
            .first()
        )
        return None if row is None else record(WebhookDelivery, row)

    async def purge(self, age: timedelta, limit: int) -> int:
        """Delete deliveries that have ended and are older; how many, `limit` at most."""
        old = (
            sa.select(_D.id)
            .where(_D.state.in_(DELIVERY.terminal), _D.created_at < sa.func.now() - age)
            .limit(limit)
        )
        result = await self._connection.execute(sa.delete(webhook_deliveries).where(_D.id.in_(old)))
        return result.rowcount
