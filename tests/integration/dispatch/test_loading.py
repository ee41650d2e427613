"""A version that no node has is loaded where it fits, tried elsewhere, and those who wait are told."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from tests.integration.dispatch.conftest import World
from vyvo_dagster.dispatch.loading import Loading
from vyvo_dagster.dispatch.main import orchestrate
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.store.assignments import Observation
from vyvo_dagster.store.records import Assignment
from vyvo_dagster.streams import events, keys

GIB = 2**30


async def gpu_node(world: World, free: int) -> UUID:
    async with world.database.transaction() as store:
        node_id, _ = await store.nodes.join(
            id=uuid7(), name=f"n-{uuid7().hex}", boot_id=(boot := uuid7()), labels={},
            capabilities={},
        )  # fmt: skip
        gpu = {"index": 0, "memory_total_bytes": free, "memory_used_bytes": 0,
               "utilization_ratio": 0}  # fmt: skip
    await world.beat(node_id, boot, gpus=[gpu])
    return node_id


async def assigned(world: World) -> list[Assignment]:
    """The version's assignments, oldest first."""
    async with world.database.transaction() as store:
        nodes = [node.id for node in await store.nodes.all()]
        found = await store.assignments.of_nodes(nodes)
    return [a for a in found if a.version_id == world.version_id]


async def observe(world: World, seen: Assignment, state: AssignmentState) -> None:
    async with world.database.transaction() as store:
        await store.assignments.observe([(seen.node_id, Observation(seen.id, state, None, 1))])


async def test_from_no_node_to_dispatched_by_way_of_one_that_fails(world: World) -> None:
    await world.execute("update nodes set cordoned = true")  # those of other tests
    # The sizes are like no other test's, so that nothing else fits as well.
    await world.execute(
        """update model_versions set resources = '{"gpu_memory_bytes": 42949672960}'
        where id = :id""", id=world.version_id,
    )  # fmt: skip
    small, tight, wide = [await gpu_node(world, n * GIB) for n in (30, 41, 80)]
    (job_id,) = await world.submit(Priority.STANDARD)
    told = []

    async def until(wanted: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(30):
            while not (found := await wanted()):
                await asyncio.sleep(0.02)
        return found

    async def news() -> list[tuple[str, str | None]]:
        return [(e.kind, e.data.get("state")) for e in await events.replay(world.redis, job_id)]

    stop = asyncio.Event()
    task = asyncio.create_task(orchestrate(world.settings, stop))
    try:
        (first,) = await until(lambda: assigned(world))
        assert (first.node_id, first.on_demand) == (tight, True)
        kinds = await until(lambda: _has(world.redis, tight))
        # One for each version that is loaded there, and other tests have left some that wait.
        assert set(kinds) == {"sync"}
        told = [("loading", "requested")]
        assert await until(news) == told
        await observe(world, first, AssignmentState.LOADING)
        told.append(("loading", "loading"))
        await until(lambda: _equal(news, told))
        await observe(world, first, AssignmentState.FAILED)
        first, second = await until(lambda: _count(world, 2))
        assert second.node_id == wide
        told.append(("loading", "requested"))
        await until(lambda: _equal(news, told))
        await observe(world, second, AssignmentState.FAILED)
        told.append(("loading", "failed"))
        await until(lambda: _equal(news, told))
        # A second orchestrator, or the next one, tells nothing twice.
        await Loading(world.database, world.redis).load_on_demand()
        assert await news() == told
        await observe(world, second, AssignmentState.READY)
        job = await world.until(job_id, "dispatched")
        assert job.node_id == wide
        assert small not in {a.node_id for a in await assigned(world)}
        last = (await events.replay(world.redis, job_id))[-2]
        assert "could not be loaded" in last.data["detail"]
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


async def _has(redis: Any, node_id: UUID) -> list[str]:
    return [fields["kind"] for _, fields in await redis.xrange(keys.node(node_id))]


async def _equal(news: Callable[[], Awaitable[Any]], wanted: list[Any]) -> bool:
    return bool(await news() == wanted)


async def _count(world: World, count: int) -> list[Assignment] | None:
    found = await assigned(world)
    return found if len(found) == count else None
