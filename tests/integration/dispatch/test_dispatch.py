"""Dispatch on real Postgres and Redis: order, fencing, leases, flushes, two orchestrators."""

import asyncio
import json
from datetime import timedelta
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from tests.integration.dispatch.conftest import World
from vyvo_dagster.dispatch.main import orchestrate
from vyvo_dagster.dispatch.requeue import requeue_lost
from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.domain.node import NodeState
from vyvo_dagster.protocol.job import OrderKind
from vyvo_dagster.store.attempts import Gone
from vyvo_dagster.store.reports import End
from vyvo_dagster.streams import events, keys, queues


async def complete(world: World, job_id, attempt, node_id, state=JobState.SUCCEEDED):  # type: ignore[no-untyped-def]
    async with world.database.transaction() as store:
        end = End(job_id, attempt, state, False, None, None, None, None, "{}")
        ended_at = await store.reports.end(node_id, [end])
    await world.redis.publish(keys.WAKE, "test")
    return ended_at


async def ordered(world: World, node_id: UUID) -> set[tuple[str, int]]:
    """The attempts that a node was told to run: (job id, attempt). It may be told one twice."""
    orders = [fields for _, fields in await world.redis.xrange(keys.node(node_id))]
    bodies = [json.loads(o["body"]) for o in orders if o["kind"] == OrderKind.RUN]
    return {(body["job_id"], body["attempt"]) for body in bodies}


@pytest.mark.usefixtures("orchestrator")
async def test_a_job_reaches_its_node_with_one_fenced_attempt(world: World) -> None:
    node_id, _ = await world.node()
    (job_id,) = await world.submit(Priority.STANDARD)
    job = await world.until(job_id, "dispatched")
    assert (job.attempt, job.node_id) == (1, node_id)
    async with asyncio.timeout(30):
        while not (orders := await world.redis.xrange(keys.node(node_id))):
            await asyncio.sleep(0.01)
    order = json.loads(orders[0][1]["body"])
    assert orders[0][1]["kind"] == "run"
    assert (order["job_id"], order["attempt"], order["input"]) == (str(job_id), 1, {"n": 1})
    kinds = [e.kind for e in await events.replay(world.redis, job_id)]
    assert kinds == ["dispatched"]
    # The queue holds nothing any more: what is dispatched is acknowledged and deleted.
    async with asyncio.timeout(30):
        while await world.redis.exists(keys.jobs(world.model_id, "1", Priority.STANDARD, "t")):
            await asyncio.sleep(0.01)
    assert not any(q.model_id == world.model_id for q in await queues.names(world.redis))

    assert await complete(world, job_id, 1, uuid7()) is None  # another node
    assert await complete(world, job_id, 2, node_id) is None  # another attempt
    assert (await complete(world, job_id, 1, node_id)) is not None
    assert await complete(world, job_id, 1, node_id, JobState.FAILED) is None  # ended already
    assert (await world.job(job_id)).state is JobState.SUCCEEDED


@pytest.mark.usefixtures("orchestrator")
async def test_urgent_jobs_go_first_and_slots_are_not_exceeded(world: World) -> None:
    batch, standard, interactive = await world.submit(
        Priority.BATCH, Priority.STANDARD, Priority.INTERACTIVE
    )
    node_id, _ = await world.node(slots=1)
    for job_id in (interactive, standard, batch):
        await world.until(job_id, "dispatched")
        states = [(await world.job(j)).state for j in (interactive, standard, batch)]
        assert states.count(JobState.DISPATCHED) == 1
        await complete(world, job_id, 1, node_id)
    assert (await world.job(batch)).state is JobState.SUCCEEDED


@pytest.mark.usefixtures("orchestrator")
async def test_a_lease_that_ends_requeues_then_fails_as_node_lost(world: World) -> None:
    node_id, _ = await world.node()
    (job_id,) = await world.submit(Priority.STANDARD)
    for attempt in (1, 2):
        async with asyncio.timeout(30):
            while (job := await world.job(job_id)).attempt != attempt or job.state != "dispatched":
                await asyncio.sleep(0.02)
        await world.execute(
            "update jobs set lease_expires_at = now() - interval '1 second' where id = :id",
            id=job_id,
        )
    job = await world.until(job_id, "failed")
    assert job.error_code == "node_lost"
    assert await complete(world, job_id, 1, node_id) is None
    async with world.database.transaction() as store:
        assert [a.outcome for a in await store.attempts.of_job(job_id)] == ["lost", "lost"]
    kinds = [e.kind for e in await events.replay(world.redis, job_id)]
    assert kinds == ["dispatched", "requeued", "dispatched", "completed"]


@pytest.mark.usefixtures("orchestrator")
async def test_a_renewed_lease_does_not_end_and_a_foreign_attempt_is_fenced(world: World) -> None:
    node_id, _ = await world.node()
    (job_id,) = await world.submit(Priority.STANDARD)
    job = await world.until(job_id, "dispatched")
    async with world.database.transaction() as store:
        refs = [(job_id, 1), (job_id, 7), (uuid7(), 1)]
        fenced = await store.attempts.renew(node_id, refs, timedelta(minutes=5))
    assert fenced == refs[1:]
    renewed = await world.job(job_id)
    assert renewed.lease_expires_at is not None
    assert job.lease_expires_at is not None
    assert renewed.lease_expires_at > job.lease_expires_at


@pytest.mark.usefixtures("orchestrator")
async def test_a_flush_of_redis_loses_no_job(world: World) -> None:
    ids = await world.submit(*[Priority.STANDARD] * 5)
    await world.redis.flushall()
    node_id, _ = await world.node(slots=5)
    for job_id in ids:
        await world.until(job_id, "dispatched")
        await complete(world, job_id, 1, node_id)


async def test_two_orchestrators_dispatch_each_job_once(world: World) -> None:
    stop = asyncio.Event()
    both = [asyncio.create_task(orchestrate(world.settings, stop)) for _ in range(2)]
    node_id, _ = await world.node(slots=40)
    ids = await world.submit(*[Priority.STANDARD] * 40)
    for job_id in ids:
        assert (await world.until(job_id, "dispatched")).attempt == 1
    async with asyncio.timeout(30):
        while len(attempts := await ordered(world, node_id)) < 40:
            await asyncio.sleep(0.01)
    assert attempts == {(str(i), 1) for i in ids}
    stop.set()
    await asyncio.gather(*both)


@pytest.mark.usefixtures("orchestrator")
async def test_a_job_that_no_node_takes_expires_and_says_so(world: World) -> None:
    (job_id,) = await world.submit(Priority.INTERACTIVE, ttl=0.5)
    job = await world.until(job_id, "expired")
    assert job.error_code == "expired"
    assert job.error_message is not None
    assert "no node took the job" in job.error_message


@pytest.mark.usefixtures("orchestrator")
async def test_a_cancel_that_its_agent_does_not_confirm_is_ended(world: World) -> None:
    await world.node()
    (job_id,) = await world.submit(Priority.STANDARD)
    await world.until(job_id, "dispatched")
    async with world.database.transaction() as store:
        assert await store.jobs.cancel_queued(job_id) is None
        assert await store.jobs.request_cancel(job_id) is not None
    await world.execute(
        "update jobs set cancel_requested_at = now() - interval '1 minute' where id = :id",
        id=job_id,
    )
    assert (await world.until(job_id, "canceled")).error_code == "canceled"


@pytest.mark.usefixtures("own_orchestrator")
async def test_a_silent_node_is_suspect_then_lost_and_gets_no_work(own_world: World) -> None:
    node_id, boot = await own_world.node()
    for seconds, state in ((40, NodeState.SUSPECT), (80, NodeState.LOST)):
        await own_world.execute(
            "update nodes set last_heartbeat_at = now() - :s * interval '1 second' where id = :id",
            s=seconds,
            id=node_id,
        )
        async with asyncio.timeout(30):
            while True:
                async with own_world.database.transaction() as store:
                    node = await store.nodes.get(node_id)
                if node is not None and node.state is state:
                    break
                await asyncio.sleep(0.02)
    assert await own_world.beat(node_id, boot) is None  # must join again
    async with own_world.database.transaction() as store:
        kinds = [e.kind for e in await store.nodes.events(node_id, None, 10)]
    # What was loaded there has moved, or has nowhere to go, meanwhile.
    states = [kind for kind in kinds if not kind.startswith("assignment_")]
    assert states == ["lost", "suspect"]
    (job_id,) = await own_world.submit(Priority.INTERACTIVE)
    await asyncio.sleep(0.5)
    assert (await own_world.job(job_id)).state is JobState.QUEUED


@pytest.mark.usefixtures("orchestrator")
async def test_a_crashed_attempt_is_tried_again_elsewhere_and_not_at_once(world: World) -> None:
    (job_id,) = await world.submit(Priority.STANDARD)
    first, _ = await world.node()
    job = await world.until(job_id, "dispatched")
    other, _ = await world.node()
    async with world.database.transaction() as store:
        gone = Gone("failed", "runner_crashed", "SIGSEGV")
        again = await requeue_lost(store, job, gone, charged=True)
    assert again is not None
    assert again.retry_at is not None
    job = await world.until(job_id, "dispatched")
    assert (job.attempt, job.node_id) == (2, other)
    assert job.dispatched_at is not None
    assert again.retry_at <= job.dispatched_at < again.retry_at + timedelta(seconds=4)
    assert first != other
