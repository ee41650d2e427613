"""The sensor that launches what the api did not: each build once, and none forgotten."""

from uuid import UUID

import pytest
from dagster import DagsterRunStatus, RunRequest, build_sensor_context
from dagster._core.storage.dagster_run import DagsterRun
from uuid_utils.compat import uuid7

from resources import StreamsResource
from sensors import build_queue
from tests.integration.dagster.conftest import World
from vyvo_dagster.definitions import defs
from vyvo_dagster.execution.lease import hold_lease, note_queued
from vyvo_dagster.execution.names import BUILD_ID_TAG, LOST_TAG, PARTITIONS
from vyvo_dagster.store.records import Build
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis


def tick(world: World) -> dict[UUID, RunRequest]:
    """One evaluation; its run requests by build."""
    with build_sensor_context(
        instance=world.instance, resources=world.resources, definitions=defs
    ) as context:
        result = build_queue.evaluate_tick(context)
    for added in result.dynamic_partitions_requests or []:
        assert added.partitions_def_name == PARTITIONS
    return {UUID(request.tags[BUILD_ID_TAG]): request for request in result.run_requests or []}


def announce(world: World, build: Build) -> None:
    async def add(redis: AsyncRedis) -> None:
        await redis.xadd(keys.BUILDS, {"id": str(build.id)})

    world.streams.call(add)


def age_claim(world: World, build: Build) -> None:
    """Make a claim older than it may get."""
    import sqlalchemy as sa

    statement = sa.text(
        "update runner_builds set launch_claimed_at = now() - interval '2 minutes' where id = :id"
    )
    world.store.call(lambda db: db.connection.execute(statement, {"id": build.id}))


def launched(world: World, build: Build) -> DagsterRun:
    """A run of the build that was handed to Celery and that no worker has taken."""
    run = DagsterRun(
        job_name="build_runner",
        run_id=str(uuid7()),
        status=DagsterRunStatus.STARTING,
        tags={BUILD_ID_TAG: str(build.id)},
    )
    world.instance.add_run(run)
    world.claim(build)
    return run


def test_an_announced_build_is_launched_once(world: World) -> None:
    build = world.add_build(None)
    announce(world, build)
    request = tick(world)[build.id]
    assert request.partition_key == f"{build.model_id}@{build.version}"
    assert request.run_key is not None
    assert request.run_key.startswith(f"{build.id}:")
    assert build.id not in tick(world)
    with world.streams.connection() as redis:
        assert redis.xlen(keys.BUILDS) == 0
        assert redis.xpending(keys.BUILDS, keys.GROUP_DAGSTER)["pending"] == 0


def test_a_build_that_the_api_launched_is_left_alone(world: World) -> None:
    build = world.add_build(None)
    world.claim(build)
    announce(world, build)
    assert build.id not in tick(world)


def test_a_build_whose_entry_was_lost_is_found_by_its_row(world: World) -> None:
    build = world.add_build(None)
    with world.streams.connection() as redis:
        redis.flushall()
    assert build.id in tick(world)


def test_a_launch_that_never_came_is_made_again(world: World) -> None:
    build = world.add_build(None)
    first = tick(world)[build.id]
    age_claim(world, build)
    second = tick(world)[build.id]
    # Another key, or Dagster would take it for the same request.
    assert first.run_key != second.run_key


def test_a_run_that_waits_for_a_worker_is_not_doubled(world: World) -> None:
    build = world.add_build(None)
    run = launched(world, build)
    with world.streams.connection() as redis:
        note_queued(redis, run.run_id)
        age_claim(world, build)
        assert build.id not in tick(world)
        age_claim(world, build)
        with hold_lease(redis, run.run_id):
            assert build.id not in tick(world)


def test_a_run_whose_message_was_lost_is_replaced(world: World) -> None:
    build = world.add_build(None)
    run = launched(world, build)
    age_claim(world, build)
    assert build.id in tick(world)
    ended = world.instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status is DagsterRunStatus.CANCELED
    assert LOST_TAG in ended.tags


@pytest.mark.parametrize("entry", [{"id": "no uuid"}, {"other": "field"}])
def test_an_entry_that_names_no_build_is_dropped(world: World, entry: dict[str, str]) -> None:
    async def add(redis: AsyncRedis) -> None:
        await redis.xadd(keys.BUILDS, entry)

    world.streams.call(add)
    tick(world)
    with world.streams.connection() as redis:
        assert redis.xlen(keys.BUILDS) == 0


def test_builds_are_launched_while_redis_is_away(world: World) -> None:
    build = world.add_build(None)
    world.streams = StreamsResource(url="redis://127.0.0.1:1/0")
    assert build.id in tick(world)
