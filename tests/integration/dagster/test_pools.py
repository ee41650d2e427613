"""The sensor that lets node pools follow their queues, on a real database."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from dagster import build_sensor_context
from uuid_utils.compat import uuid7

from sensors.pools import node_pools
from tests.integration.dagster.conftest import World
from vyvo_dagster.domain.job import JobState
from vyvo_dagster.domain.pool import OperationState, ScalerKind
from vyvo_dagster.scaling.policy import POLICY
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.pools import Operation, Pool


@pytest.fixture
def pool(world: World) -> Pool:
    name = f"p{uuid7().hex[-12:]}"
    return put(world, name, queue_depth_target=2)


def put(world: World, name: str, **values: Any) -> Pool:
    asked = {
        "scaler": ScalerKind.LOCAL, "config": {}, "host": "elsewhere", "models": [world.model_id],
        "min_size": 0, "max_size": 3, "queue_depth_target": None, "cool_down_seconds": 0,
        "drain_seconds": 1, "join_seconds": 1, **values,
    }  # fmt: skip
    return world.store.call(lambda db: db.pools.put(id=uuid7(), name=name, **asked))


def tick(world: World) -> str:
    with build_sensor_context(instance=world.instance, resources=world.resources) as context:
        return node_pools.evaluate_tick(context).skip_message or ""


def operations(world: World, pool: Pool) -> list[Operation]:
    return world.store.call(lambda db: db.pools.operations(pool.id, None, 50))


def queue(world: World, count: int) -> list[UUID]:
    build = world.add_build(None)
    ids = [uuid7() for _ in range(count)]
    row: dict[str, Any] = {
        "tenant": "t", "model_id": build.model_id, "version_id": build.version_id, "version": "1",
        "priority": "standard", "state": JobState.QUEUED, "input": {}, "max_attempts": 1,
        "expires_at": datetime.now(UTC) + timedelta(hours=1),
    }  # fmt: skip
    world.store.call(lambda db: db.jobs.add_many([{"id": each, **row} for each in ids]))
    return ids


def settle(
    world: World, pool: Pool, members: list[str], *, ago: float = 0, fails: bool = False
) -> None:
    """What a worker does: the operation succeeds (or fails), the pool has these nodes."""

    async def work(db: Store) -> None:
        me = uuid7()
        await db.connection.execute(
            sa.text("delete from node_pool_operations where pool_id <> :id"), {"id": pool.id}
        )
        claimed = await db.pools.claim(me, "elsewhere", [ScalerKind.LOCAL], timedelta(seconds=9))
        assert claimed is not None
        if fails:
            assert await db.pools.advance(claimed[0].id, me, OperationState.FAILED)
            await db.connection.execute(
                sa.text("update node_pool_operations set finished_at = now() -"
                        " make_interval(secs => :s) where id = :id"),
                {"s": ago, "id": claimed[0].id},
            )  # fmt: skip
            return
        for state in (OperationState.APPLYING, OperationState.JOINING, OperationState.SUCCEEDED):
            assert await db.pools.advance(claimed[0].id, me, state)
        await db.pools.set_members(pool.id, members)
        await db.connection.execute(
            sa.text("update node_pools set scaled_at = now() - make_interval(secs => :s)"
                    " where id = :id"), {"s": ago, "id": pool.id},
        )  # fmt: skip

    world.store.call(work)


def test_a_queue_brings_nodes_and_its_end_takes_them_one_by_one(world: World, pool: Pool) -> None:
    name = pool.name
    assert f"{name} stays at 0: 0 jobs wait" in tick(world)
    jobs = queue(world, 5)
    assert f"{name} from 0 to 3: 5 jobs wait, 2 are meant for a node" in tick(world)
    (asked,) = operations(world, pool)
    assert (asked.size, asked.requested_by, asked.state) == (3, POLICY, OperationState.QUEUED)
    # While that is under way nothing more is asked for.
    assert name not in tick(world)
    settle(world, pool, [f"{name}-1", f"{name}-2", f"{name}-3"])
    assert f"{name} stays at 3" in tick(world)
    for job in jobs:
        world.store.call(lambda db, job=job: db.jobs.cancel_queued(job))
    assert f"{name} from 3 to 2: 0 jobs wait and 3 of 3 nodes are idle" in tick(world)
    assert [o.size for o in operations(world, pool)] == [2, 3]


def test_the_cool_down_is_that_of_the_last_change(world: World, pool: Pool) -> None:
    put(world, pool.name, queue_depth_target=2, cool_down_seconds=60)
    queue(world, 1)
    tick(world)
    settle(world, pool, [f"{pool.name}-1"], ago=30)
    world.model_id = f"test/m-{uuid7().hex[-12:]}"
    queue(world, 9)
    put(world, pool.name, queue_depth_target=2, cool_down_seconds=60)
    assert f"{pool.name} stays at 1: cooling down for" in tick(world)
    put(world, pool.name, queue_depth_target=2, cool_down_seconds=10)
    assert f"{pool.name} from 1 to 3" in tick(world)


def test_other_models_and_pools_without_a_target_are_left_alone(world: World, pool: Pool) -> None:
    other = put(world, f"p{uuid7().hex[-12:]}", models=["test/another"], queue_depth_target=1)
    by_hand = put(world, f"p{uuid7().hex[-12:]}")
    bounded = put(world, f"p{uuid7().hex[-12:]}", min_size=1)
    queue(world, 3)
    said = tick(world)
    assert f"{pool.name} from 0 to 2" in said
    assert f"{other.name} stays at 0" in said
    assert f"{by_hand.name} stays at 0: the pool has no queue depth target" in said
    assert f"{bounded.name} from 0 to 1: 0 is below the least size 1" in said


def test_after_a_failure_the_policy_waits_before_it_tries_again(world: World) -> None:
    pool = put(world, f"p{uuid7().hex[-12:]}", min_size=1)
    assert f"{pool.name} from 0 to 1" in tick(world)
    settle(world, pool, [], ago=30, fails=True)
    assert f"{pool.name} stays at 0: its last change failed; the next try is in" in tick(world)
    assert len(operations(world, pool)) == 1
    world.store.call(
        lambda db: db.connection.execute(
            sa.text("update node_pool_operations set finished_at = now() - interval '61 s'")
        )
    )
    assert f"{pool.name} from 0 to 1" in tick(world)
