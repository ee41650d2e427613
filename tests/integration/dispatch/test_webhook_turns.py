"""Whose webhooks are claimed first where many wait."""

from datetime import timedelta

import sqlalchemy as sa
from uuid_utils.compat import uuid7

from tests.integration.dispatch.conftest import World
from vyvo_dagster.domain.job import Priority

LEASE = timedelta(seconds=60)


async def deliver(world: World, tenant: str, count: int, minutes_ago: int) -> None:
    """Deliveries that have been due for so long, and as many that are not due yet."""
    (job_id,) = await world.submit(Priority.STANDARD)
    async with world.database.transaction() as store:
        for minutes in [minutes_ago] * count + [-60] * count:
            await store.connection.execute(
                sa.text(
                    "insert into webhook_deliveries (id, tenant, job_id, event, url, payload, state,"
                    " next_try_at) values (:id, :tenant, :job, 'failed', 'http://x', '{}', 'pending',"
                    " now() - make_interval(mins => :minutes))"
                ),
                {"id": uuid7(), "tenant": tenant, "job": job_id, "minutes": minutes},
            )


async def claim(world: World, limit: int, *busy: str) -> list[str]:
    async with world.database.transaction() as store:
        found = await store.webhooks.claim(limit, LEASE, LEASE, busy)
    return sorted(claimed.delivery.tenant for claimed in found)


async def test_tenants_take_turns(own_world: World) -> None:
    await deliver(own_world, "flood", 20, 60)
    await deliver(own_world, "one", 1, 5)
    await deliver(own_world, "two", 2, 1)
    assert await claim(own_world, 6) == ["flood", "flood", "flood", "one", "two", "two"]
    assert await claim(own_world, 6) == ["flood"] * 6
    assert await claim(own_world, 6, "flood") == []
    assert await claim(own_world, 50) == ["flood"] * 11


async def test_two_orchestrators_never_claim_the_same(own_world: World) -> None:
    await deliver(own_world, "a", 3, 60)
    await deliver(own_world, "b", 3, 60)
    async with own_world.database.transaction() as store:
        first = await store.webhooks.claim(4, LEASE, LEASE, ())
        async with own_world.database.transaction() as other:
            second = await other.webhooks.claim(4, LEASE, LEASE, ())
    ids = [each.delivery.id for each in (*first, *second)]
    assert (len(first), len(second), len(set(ids))) == (4, 2, 6)
