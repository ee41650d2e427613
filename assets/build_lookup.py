"""Which build a run is for, and taking it: the fence that lets only one run execute a build."""

from collections.abc import Sequence
from uuid import UUID

from dagster import AssetExecutionContext, DagsterRun, Failure
from uuid_utils.compat import uuid7

from resources import StoreResource
from vyvo_dagster.domain.build import BuildState, split_partition_key
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.execution.names import BUILD_ID_TAG
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build, ModelVersion

__all__ = ["earlier_runs", "take_build"]


def earlier_runs(context: AssetExecutionContext) -> list[str]:
    """The runs that this run retries, at any remove; it takes over what they had."""
    run: DagsterRun = context.run
    if run.root_run_id is None:
        return []
    group = context.instance.get_run_group(run.run_id)
    members = {r.run_id for r in group[1]} if group else set[str]()
    return sorted((members | {run.root_run_id}) - {run.run_id})


def take_build(context: AssetExecutionContext, store: StoreResource) -> tuple[Build, ModelVersion]:
    """Take the build of this run for execution, or fail the run without touching the build.

    Taking it again in a later step of the same run, or in a retry of it, succeeds.

    Raises:
        Failure: there is no such build, it has ended, or another run executes it.
    """
    earlier = earlier_runs(context)
    tag, partition = context.run.tags.get(BUILD_ID_TAG), context.partition_key

    async def take(db: Store) -> tuple[Build, ModelVersion]:
        build = await _find(db, tag, partition, [context.run.run_id, *earlier])
        taken = await db.builds.begin(build.id, context.run.run_id, earlier)
        if taken is None:
            now = await db.builds.get(build.id)
            state = build.state if now is None else now.state
            ended = state in {BuildState.SUCCEEDED, BuildState.FAILED, BuildState.CANCELED}
            why = f"is {state}" if ended else f"is executed by another run ({now and now.run_id})"
            raise _refusal(f"build {build.id} {why}; this run did nothing")
        version = await db.models.version_by_id(taken.version_id)
        assert version is not None  # a foreign key
        return taken, version

    return store.call(take)


async def _find(db: Store, tag: str | None, partition: str, run_ids: Sequence[str]) -> Build:
    if tag is not None:
        try:
            found = await db.builds.get(UUID(tag))
        except ValueError:
            found = None
        if found is None:
            raise _refusal(f"there is no build {tag[:64]}")
        return found
    # Launched by hand for a partition. A later step finds what the first one took.
    model_id, version = split_partition_key(partition)
    mine = await db.builds.of_runs(run_ids)
    if mine is not None:
        return mine
    newest = await db.builds.newest(model_id, version)
    if newest is None:
        raise _refusal(f"{partition} was never asked for; POST /api/builds starts a build")
    if newest.state is BuildState.SUCCEEDED:
        raise _refusal(f"{partition} is built; a version is built once, so name a new version")
    if newest.state in {BuildState.FAILED, BuildState.CANCELED}:
        return await _again(db, newest)
    return newest


async def _again(db: Store, old: Build) -> Build:
    """A new build with what the old one asked for."""
    version = await db.models.version_by_id(old.version_id)
    if version is None or version.state is not VersionState.DRAFT:
        raise _refusal(f"{old.model_id}@{old.version} is no draft, so it cannot be built again")
    build_id = uuid7()
    await db.models.start_building(
        id=version.id, model_id=old.model_id, version=old.version, template=old.template,
        modality=version.modality, weights_uri=old.weights_uri, env=old.env,
        resources=version.resources, build_id=build_id,
    )  # fmt: skip
    return await db.builds.add(
        id=build_id, tenant=old.tenant, model_id=old.model_id, version=old.version,
        version_id=old.version_id, runner_name=old.runner_name, template=old.template,
        repo=old.repo, ref=old.ref, weights_uri=old.weights_uri, env=dict(old.env),
        base_image=old.base_image, backend=old.backend,
    )  # fmt: skip


def _refusal(why: str) -> Failure:
    return Failure(description=why, allow_retries=False)
