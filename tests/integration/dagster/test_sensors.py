"""The sensors that follow what happens outside of runs, and the schedules."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from dagster import (
    AssetMaterialization,
    AssetObservation,
    DagsterEvent,
    DagsterInstance,
    DagsterRunStatus,
    build_run_status_sensor_context,
    build_schedule_context,
    build_sensor_context,
)
from dagster._core.storage.dagster_run import DagsterRun
from uuid_utils.compat import uuid7

from ops.rebuilds import Stale, request_rebuild, stale_versions
from runner_images import get_template
from sensors import build_canceled, build_failed, node_heartbeats, weekly_rebuild
from tests.integration.dagster.conftest import World
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.errors import Conflict
from vyvo_dagster.execution.names import BUILD_ID_TAG, LOST_TAG
from vyvo_dagster.store.assignments import Observation
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Assignment, Build

Event = AssetMaterialization | AssetObservation


class Watcher:
    """Ticks of node_heartbeats that keep their cursor, as the daemon does."""

    def __init__(self, world: World) -> None:
        self.world, self.cursor = world, None

    def tick(self) -> dict[str | None, Event]:
        with build_sensor_context(
            instance=self.world.instance, resources=self.world.resources, cursor=self.cursor
        ) as context:
            result = node_heartbeats.evaluate_tick(context)
        self.cursor = result.cursor or self.cursor
        found: dict[str | None, Event] = {}
        for event in result.asset_events:
            assert isinstance(event, Event)
            found[event.partition] = event
        return found


def join(world: World) -> UUID:
    node_id, name = uuid7(), f"gpu-{uuid7().hex[-8:]}"

    async def add(db: Store) -> None:
        await db.nodes.join(id=node_id, name=name, boot_id=uuid7(), labels={}, capabilities={})

    world.store.call(add)
    return node_id


def observe(world: World, assignment: Assignment, state: AssignmentState) -> None:
    seen = Observation(id=assignment.id, state=state, detail=None, slots=1)
    world.store.call(lambda db: db.assignments.observe([(assignment.node_id, seen)]))


def test_each_change_of_a_deployment_is_told_once(world: World) -> None:
    build, node_id, watcher = world.add_build(None), join(world), Watcher(world)
    partition = f"{build.model_id}@{build.version}"
    watcher.tick()
    assignment = world.store.call(
        lambda db: db.assignments.request(id=uuid7(), node_id=node_id, version_id=build.version_id)
    )
    requested = watcher.tick()[partition]
    assert isinstance(requested, AssetObservation)
    assert requested.metadata["ready_nodes"].value == 0
    assert partition not in watcher.tick()

    observe(world, assignment, AssignmentState.READY)
    ready = watcher.tick()[partition]
    assert isinstance(ready, AssetMaterialization)
    assert (ready.metadata["ready_nodes"].value, ready.metadata["assignments"].value) == (1, 1)

    world.store.call(lambda db: db.assignments.remove(node_id, assignment.id))
    observe(world, assignment, AssignmentState.REMOVED)
    gone = watcher.tick()[partition]
    assert isinstance(gone, AssetObservation)
    assert gone.metadata["assignments"].value == 0
    assert partition not in watcher.tick()


def ended_run(world: World, build: Build, status: DagsterRunStatus, **tags: str) -> DagsterRun:
    run = DagsterRun(
        job_name="build_runner",
        run_id=str(uuid7()),
        status=status,
        tags={BUILD_ID_TAG: str(build.id), **tags},
    )
    world.instance.add_run(run)
    return run


def tell(world: World, sensor: Any, run: DagsterRun, event: DagsterEvent) -> None:
    with build_run_status_sensor_context(
        sensor_name=sensor.name,
        dagster_event=event,
        dagster_instance=world.instance,
        dagster_run=run,
        resources=world.resources,
    ) as context:
        sensor(context.for_run_failure() if sensor is build_failed else context)


def failure(message: str) -> DagsterEvent:
    return DagsterEvent("PIPELINE_FAILURE", "build_runner", message=message)


def cancellation() -> DagsterEvent:
    return DagsterEvent("PIPELINE_CANCELED", "build_runner")


def test_a_killed_run_ends_its_build(world: World) -> None:
    build = world.add_build(None)
    run = ended_run(world, build, DagsterRunStatus.FAILURE)
    world.begin(build, run.run_id)
    tell(world, build_failed, run, failure("The worker that executed the run is gone."))
    ended = world.build(build.id)
    assert ended.state is BuildState.FAILED
    assert ended.error == "run: The worker that executed the run is gone."
    assert ended.log_url is not None
    assert world.version(build).state is VersionState.DRAFT


def test_a_run_that_is_retried_keeps_its_build(world: World) -> None:
    build = world.add_build(None)
    run = ended_run(world, build, DagsterRunStatus.FAILURE, **{"dagster/will_retry": "true"})
    world.begin(build, run.run_id)
    tell(world, build_failed, run, failure("gone"))
    assert world.build(build.id).state is BuildState.BUILDING
    assert world.version(build).state is VersionState.BUILDING


def test_a_run_that_lost_the_race_does_not_end_the_build(world: World) -> None:
    build = world.add_build(None)
    run = ended_run(world, build, DagsterRunStatus.FAILURE)
    world.begin(build, "the-run-that-has-it")
    tell(world, build_failed, run, failure("another run has it"))
    assert world.build(build.id).state is BuildState.BUILDING


def test_a_run_canceled_before_it_began_cancels_its_build(world: World) -> None:
    build = world.add_build(None)
    run = ended_run(world, build, DagsterRunStatus.CANCELED)
    tell(world, build_canceled, run, cancellation())
    assert world.build(build.id).state is BuildState.CANCELED
    assert world.version(build).state is VersionState.DRAFT


def test_a_run_whose_message_was_lost_leaves_its_build_queued(world: World) -> None:
    build = world.add_build(None)
    run = ended_run(world, build, DagsterRunStatus.CANCELED, **{LOST_TAG: "true"})
    tell(world, build_canceled, run, cancellation())
    assert world.build(build.id).state is BuildState.QUEUED


@pytest.fixture
def served(world: World, weights_uri: str) -> Build:
    """A version that was built a moment ago."""
    build = world.add_build(weights_uri)
    assert world.run(build).success
    return build


def age(world: World, build: Build) -> None:
    statement = sa.text(
        "update runner_builds set finished_at = now() - interval '8 days' where id = :id"
    )
    world.store.call(lambda db: db.connection.execute(statement, {"id": build.id}))


def stale(world: World, max_age: timedelta | None = timedelta(days=7)) -> list[Stale]:
    found = stale_versions(world.store, world.building, max_age=max_age)
    return [each for each in found if each.version.model_id == world.model_id]


def test_only_a_stale_version_is_built_again_and_once(world: World, served: Build) -> None:
    assert stale(world) == []
    age(world, served)
    (found,) = stale(world)
    assert found.why == "it was built 8 days ago"
    assert stale(world, max_age=None) == []
    asked = world.store.call(lambda db: request_rebuild(db, found))
    assert (asked.state, asked.rebuild_of) == (BuildState.QUEUED, served.version_id)
    assert world.version(served).state is VersionState.READY
    with pytest.raises(Conflict, match="being built again already"):
        world.store.call(lambda db: request_rebuild(db, found))


def test_a_version_whose_template_or_base_changed_is_stale(world: World, served: Build) -> None:
    def was_built(**values: str) -> None:
        world.store.call(lambda db: db.builds.update(served.id, **values))

    assert stale(world, max_age=None) == []
    was_built(template_hash="0" * 64)
    assert [each.why for each in stale(world, max_age=None)] == [
        "the template digits-diffusion changed"
    ]
    was_built(template_hash=get_template("digits-diffusion").hash, backend_used="buildx")
    was_built(base_digest="sha256:" + "0" * 64)
    world.building = world.building.model_copy(update={"docker_host": "unix:///nowhere.sock"})
    # Without an engine there is nothing to compare with.
    assert stale(world, max_age=None) == []


def test_the_weekly_schedule_runs_when_something_is_stale(
    world: World, served: Build, tmp_path: Path
) -> None:
    age(world, served)
    with (
        DagsterInstance.local_temp(str(tmp_path)) as instance,
        build_schedule_context(
            instance=instance,
            resources=world.resources,
            scheduled_execution_time=datetime(2026, 11, 22, 4, tzinfo=UTC),
        ) as context,
    ):
        data = weekly_rebuild.evaluate_tick(context)
    assert [request.run_key for request in data.run_requests or []] == ["2026-11-22"]
