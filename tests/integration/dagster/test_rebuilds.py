"""Versions built once more: the same digest changes nothing, another is a new version beside the old."""

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from dagster import AssetKey, Definitions
from uuid_utils.compat import uuid7

from ops.maintenance import rebuild_stale
from tests.integration.dagster.conftest import World
from tests.integration.dagster.test_build import log_of
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.execution.names import PARTITIONS
from vyvo_dagster.store.build_requests import build_again
from vyvo_dagster.store.records import Build, ModelVersion

OTHER = "venv://sha256:" + "0" * 64


@pytest.fixture
def served(world: World, weights_uri: str) -> Build:
    """A build that has succeeded; its version is ready."""
    queued = world.add_build(weights_uri)
    assert world.run(queued).success
    return world.build(queued.id)


def versions(world: World) -> list[ModelVersion]:
    found = world.store.call(lambda db: db.models.versions(world.model_id))
    return sorted(found, key=lambda version: version.version)


def again(world: World, served: Build) -> Build:
    version = world.version(served)
    return world.store.call(lambda db: build_again(db, served, version, uuid7()))


def said(world: World, build: Build) -> str:
    assert build.log_url is not None
    return "\n".join(line["text"] for line in log_of(world, build.log_url))


def built_from_other(world: World, served: Build) -> None:
    """As if the version had been built when its base image was another one."""
    statement = sa.text("update model_versions set runner_image = :image where id = :id")
    values = {"image": OTHER, "id": served.version_id}
    world.store.call(lambda db: db.connection.execute(statement, values))


def test_the_same_digest_says_so_and_changes_nothing(world: World, served: Build) -> None:
    before = versions(world)
    queued = again(world, served)
    result = world.run(queued)
    assert result.success
    build = world.build(queued.id)
    assert (build.state, build.unchanged) == (BuildState.SUCCEEDED, True)
    assert build.image == served.image
    assert versions(world) == before
    assert f"the digest is {served.image_digest}, as before: 1 stays as it is" in said(world, build)
    (made,) = result.asset_materializations_for_node("model_version")
    assert made.metadata["unchanged"].value is True


def test_another_digest_is_a_new_version_beside_the_old(world: World, served: Build) -> None:
    built_from_other(world, served)
    (old,) = versions(world)
    queued = again(world, served)
    assert world.run(queued).success
    build = world.build(queued.id)
    assert (build.state, build.unchanged) == (BuildState.SUCCEEDED, False)
    still, new = versions(world)
    assert still == old
    assert new.version.startswith(f"1+{datetime.now(UTC):%Y}")
    assert (new.state, new.runner_image) == (VersionState.READY, served.image)
    assert (new.weights_url, new.env, new.input_schema) == (
        old.weights_url, old.env, old.input_schema,
    )  # fmt: skip
    # The build is the new version's, and so is a partition with what is in it.
    assert (build.version_id, build.version) == (new.id, new.version)
    partition = f"{world.model_id}@{new.version}"
    assert partition in world.instance.get_dynamic_partitions(PARTITIONS)
    for name in ("runner_image", "model_version"):
        known = world.instance.get_materialized_partitions(AssetKey(name))
        assert partition in known


def test_a_rebuild_that_fails_leaves_the_version_as_it_was(world: World, served: Build) -> None:
    before = versions(world)
    queued = again(world, served)
    world.store.call(lambda db: db.builds.update(queued.id, template="none-such"))
    assert not world.run(queued).success
    assert world.build(queued.id).state is BuildState.FAILED
    assert versions(world) == before
    # And it can be tried again.
    assert world.run(again(world, served)).success


def test_a_ready_version_is_rebuilt_from_the_ui(world: World, served: Build) -> None:
    before = versions(world)
    assert world.run(served, tagged=False).success
    newest = world.store.call(lambda db: db.builds.newest(world.model_id, "1"))
    assert newest is not None
    assert (newest.rebuild_of, newest.unchanged) == (served.version_id, True)
    assert versions(world) == before


def test_only_what_is_stale_is_rebuilt_and_is_fresh_afterwards(
    world: World, served: Build, weights_uri: str
) -> None:
    model_id = world.model_id
    world.store.call(lambda db: db.builds.update(served.id, template_hash="0" * 64))
    world.model_id = f"{model_id}-fresh"
    fresh = world.add_build(weights_uri)
    assert world.run(fresh).success
    job = Definitions(jobs=[rebuild_stale], resources=world.resources).resolve_job_def(
        "rebuild_stale"
    )

    def requested() -> list[str]:
        result = job.execute_in_process(instance=world.instance)
        assert result.success
        asked: list[str] = result.output_for_node("request_rebuilds")
        return [each for each in asked if each.startswith(model_id)]

    assert requested() == [f"{model_id}@1"]
    # It is being built.
    assert requested() == []
    newest = world.store.call(lambda db: db.builds.newest(model_id, "1"))
    assert newest is not None
    assert newest.rebuild_of == served.version_id
    assert world.run(newest).success
    assert world.build(newest.id).unchanged
    assert requested() == []
