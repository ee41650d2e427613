"""Between the claim in Postgres and the order in Redis: whatever dies there, the order comes."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from redis.exceptions import RedisError

from tests.integration.dispatch.conftest import World
from vyvo_dagster.dispatch.board import Board
from vyvo_dagster.dispatch.dispatcher import Dispatcher
from vyvo_dagster.dispatch.upkeep import Upkeep
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.node import HeartbeatPolicy
from vyvo_dagster.local.parts import start_part
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.process import stop
from vyvo_dagster.local.servers import valkey
from vyvo_dagster.store.attempts import Gone
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.dispatches import Dispatch
from vyvo_dagster.streams import events, keys, queues
from vyvo_dagster.streams.client import connect

LEASE = timedelta(seconds=30)


class Struck(Database):
    """A database after whose commit, while armed, something happens."""

    strike: Callable[[], Awaitable[object]] | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Store]:
        async with super().transaction() as store:
            yield store
        if self.strike is not None:
            strike, self.strike = self.strike, None
            await strike()


async def orders(world: World, node_id: object, count: int, seconds: float = 30) -> int:
    """Jobs that a node's stream orders to run, once they are `count`; one may be ordered twice."""
    async with asyncio.timeout(seconds):
        while True:
            entries = await world.redis.xrange(keys.node(str(node_id)))
            found = {json.loads(f["body"])["job_id"] for _, f in entries if f["kind"] == "run"}
            if len(found) >= count:
                return len(found)
            await asyncio.sleep(0.02)


async def test_a_redis_killed_after_the_claim_gets_the_order_when_it_is_back(
    world: World, tmp_path: Path
) -> None:
    part = valkey(tmp_path, port=Ports(tmp_path / "ports.json").take("redis"), password="x")
    child = await start_part(part, logs=tmp_path / "logs")
    shared, world.redis = world.redis, connect(part.url)
    database = Struck(world.settings.postgres_dsn, pool_size=2)
    try:
        node_id, _ = await world.node(slots=2)
        board = Board(database, world.settings.postgres_dsn, asyncio.Event())
        await board.refresh()
        dispatcher = Dispatcher(
            database, world.redis, board, asyncio.Event(), consumer="one", lease=LEASE
        )
        ids = await world.submit(*[Priority.STANDARD] * 2)

        async def kill() -> None:
            os.kill(child.pid, signal.SIGKILL)
            await stop(child)

        database.strike = kill
        assert await dispatcher.turn() == 2
        with pytest.raises(RedisError):
            await dispatcher.turn()
        assert [(await world.job(i)).state for i in ids] == ["dispatched"] * 2
        child = await start_part(part, logs=tmp_path / "logs")
        await dispatcher.turn()
        assert await orders(world, node_id, 2) == 2
        for job_id in ids:
            told = [e.kind for e in await events.replay(world.redis, job_id)]
            assert told == ["dispatched"]
        assert await queues.names(world.redis) == set()
    finally:
        await world.redis.aclose()
        world.redis = shared
        await database.close()
        await stop(child)


async def claim(world: World, node_id: object, slots: int = 1) -> list[object]:
    """What an orchestrator leaves that dies between its commit and the hand-over."""
    ids = await world.submit(*[Priority.STANDARD] * slots)
    async with world.database.transaction() as store:
        # Of other worlds' versions a node may be told to load some, where their jobs wait.
        assignment = next(
            a
            for a in await store.assignments.of_node(node_id)  # type: ignore[arg-type]
            if a.version_id == world.version_id
        )
        placed = [Dispatch(i, assignment.node_id, assignment.id) for i in ids]
        await store.dispatches.claim(placed, LEASE)
    return [*ids]


@pytest.mark.usefixtures("orchestrator")
async def test_an_order_whose_writer_died_is_written_before_the_lease_ends(world: World) -> None:
    node_id, _ = await world.node(slots=0)
    (job_id,) = await claim(world, node_id)
    await world.execute(
        "update jobs set dispatched_at = dispatched_at - interval '16 s',"
        " lease_expires_at = lease_expires_at - interval '16 s' where id = :id",
        id=job_id,
    )
    assert await orders(world, node_id, 1, seconds=10) == 1
    # One of which an agent has told is left alone.
    (heard,) = await claim(world, node_id)
    await world.execute(
        "update jobs set dispatched_at = dispatched_at - interval '16 s' where id = :id", id=heard
    )
    async with world.database.transaction() as store:
        silent = await store.dispatches.unheard(timedelta(seconds=15), LEASE, None, 1000)
    assert heard not in [order.job_id for order in silent]
    assert job_id in [order.job_id for order in silent]
    assert [e.kind for e in await events.replay(world.redis, str(job_id))] == ["dispatched"]


@pytest.mark.usefixtures("orchestrator")
async def test_a_flush_gives_the_nodes_their_orders_again(world: World) -> None:
    node_id, _ = await world.node(slots=3)
    ids = await world.submit(*[Priority.STANDARD] * 3)
    for job_id in ids:
        await world.until(job_id, "dispatched")
    assert await orders(world, node_id, 3) == 3
    await world.redis.flushall()
    assert await orders(world, node_id, 3) == 3


@pytest.mark.usefixtures("orchestrator")
async def test_entries_of_jobs_that_wait_no_more_do_not_stay(world: World) -> None:
    """No node serves the version, so no dispatch ever reads its queue."""
    kept, gone = await world.submit(Priority.STANDARD, Priority.STANDARD)
    async with world.database.transaction() as store:
        assert await store.jobs.cancel_queued(gone) is not None
    stream = keys.jobs(world.model_id, "1", Priority.STANDARD, "t")
    async with asyncio.timeout(30):
        while await world.redis.xlen(stream) > 1:
            await asyncio.sleep(0.05)
    ((_, fields),) = await world.redis.xrange(stream)
    assert fields["id"] == str(kept)


@pytest.mark.usefixtures("orchestrator")
async def test_a_redis_that_came_back_without_its_last_entries_gets_them_again(
    world: World,
) -> None:
    (job_id,) = await world.submit(Priority.STANDARD)
    stream = keys.jobs(world.model_id, "1", Priority.STANDARD, "t")
    async with asyncio.timeout(30):
        while await world.redis.get(keys.EPOCH) is None:
            await asyncio.sleep(0.05)
    await world.redis.delete(stream)
    # What the marker says after a restart: the id of a run that is over.
    await world.redis.set(keys.EPOCH, "0" * 40)
    async with asyncio.timeout(30):
        while not await world.redis.xlen(stream):
            await asyncio.sleep(0.05)
    ((_, fields),) = await world.redis.xrange(stream)
    assert fields["id"] == str(job_id)


@pytest.mark.usefixtures("orchestrator")
async def test_a_job_that_is_written_twice_keeps_one_entry(world: World) -> None:
    (job_id,) = await world.submit(Priority.STANDARD)
    stream = keys.jobs(world.model_id, "1", Priority.STANDARD, "t")
    await queues.enqueue(world.redis, [(stream, job_id, 1)] * 4)
    async with asyncio.timeout(30):
        while await world.redis.xlen(stream) > 1:
            await asyncio.sleep(0.05)


async def test_time_on_a_node_is_none_in_the_queue(world: World) -> None:
    node_id, _ = await world.node()
    (job_id,) = await claim(world, node_id)
    await world.execute(
        "update jobs set dispatched_at = now() - interval '1 hour',"
        " expires_at = now() - interval '59 minutes' where id = :id",
        id=job_id,
    )
    async with world.database.transaction() as store:
        job = await store.jobs.get(UUID(str(job_id)), None)
        assert job is not None
        again = await store.attempts.requeue(job, Gone("handed_back"), charged=False)
    assert again is not None
    left = again.expires_at - datetime.now(UTC)
    assert timedelta(seconds=30) < left < timedelta(seconds=90)


async def test_silence_of_an_outage_is_not_held_against_nodes(world: World) -> None:
    node_id, _ = await world.node()
    (job_id,) = await claim(world, node_id)
    duties = Upkeep(
        world.database, world.redis,
        policy=HeartbeatPolicy(timedelta(seconds=30), timedelta(seconds=60)),
        patience=timedelta(seconds=1.5),
    )  # fmt: skip
    # As after an outage: the lease is over, and no heartbeat could be written.
    await world.execute(
        "update jobs set lease_expires_at = now() - interval '1 second' where id = :id", id=job_id
    )
    await duties.judge_silence()
    assert (await world.job(UUID(str(job_id)))).state == "dispatched"
    await asyncio.sleep(1.6)
    await duties.judge_silence()
    assert (await world.job(UUID(str(job_id)))).state == "queued"
