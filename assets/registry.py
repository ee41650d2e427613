"""`model_version`: the registry's entry, made ready as the last step of a build."""

import asyncio
from dataclasses import replace

from dagster import AssetExecutionContext, MaterializeResult, asset

from assets.build_run import BuildRun, build_step, count_build
from resources import BuildingResource, ObjectsResource, StoreResource, StreamsResource
from vyvo_dagster.building.types import BuildCanceled
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.errors import BuildFailed
from vyvo_dagster.execution.names import MODEL_VERSION, MODEL_VERSIONS, OWNERS, RUNNER_IMAGE
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build

__all__ = ["model_version"]

_STEP = "register"


@asset(
    key=MODEL_VERSION,
    deps=[RUNNER_IMAGE],
    partitions_def=MODEL_VERSIONS,
    group_name="runners",
    owners=OWNERS,
    kinds={"postgres"},
    code_version="1",
    description="A version that jobs may be sent to: its image, weights and schemas are in the registry.",
)
def model_version(
    context: AssetExecutionContext,
    store: StoreResource,
    streams: StreamsResource,
    objects: ObjectsResource,
    building: BuildingResource,
) -> MaterializeResult[None]:
    """Make the version ready and the build succeeded, in one transaction, and close the log."""
    with build_step(context, _STEP, store, streams, objects, building) as run:
        built = store.call(lambda db: db.builds.get(run.build.id))
        if built is None or built.image is None or built.image_digest is None:
            raise BuildFailed("register: the build has no image; materialize runner_image first")
        run.log.line(_STEP, f"{built.model_id} {built.version} is ready with {built.image}")
        ended = store.call(lambda db: _register(db, run, built))
        count_build(ended)
        return MaterializeResult(
            value=None,
            metadata={
                "model_id": built.model_id,
                "version": built.version,
                "state": VersionState.READY.value,
                "runner_image": built.image,
                "digest": built.image_digest,
                "weights_sha256": run.version.weights_sha256 or "none",
                "build_id": str(built.id),
                "log_url": ended.log_url,
            },
        )


async def _register(db: Store, run: BuildRun, built: Build) -> Build:
    """Returns the build as it ended."""
    ended = await db.builds.move(built.id, BuildState.SUCCEEDED)
    if ended is None:
        raise BuildCanceled("register: the build was canceled")
    ready = await db.models.move(
        run.version.id,
        VersionState.READY,
        runner_image=built.image,
        image_digest=built.image_digest,
    )
    if ready is None:
        raise BuildFailed("register: the version was changed meanwhile; build a new version")
    # While the row is locked: a cancel that comes now finds a build that has ended, and a reader
    # who sees it succeeded finds the whole log.
    log_url = await asyncio.to_thread(run.log.close, BuildState.SUCCEEDED)
    await db.builds.update(built.id, log_url=log_url, log_lines=run.log.lines)
    return replace(ended, log_url=log_url)
