"""`model_version`: the registry's entry, made ready as the last step of a build."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from dagster import AssetExecutionContext, AssetMaterialization, MaterializeResult, asset
from uuid_utils.compat import uuid7

from assets.build_run import BuildRun, build_step, count_build
from resources import BuildingResource, ObjectsResource, StoreResource, StreamsResource
from vyvo_dagster.building.types import BuildCanceled
from vyvo_dagster.domain.build import BuildState, partition_key
from vyvo_dagster.domain.model import VersionState, rebuilt_names
from vyvo_dagster.errors import BuildFailed
from vyvo_dagster.execution.names import (
    MODEL_VERSION,
    MODEL_VERSIONS,
    OWNERS,
    PARTITIONS,
    RUNNER_IMAGE,
)
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build, ModelVersion

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
        entry = store.call(lambda db: _register(db, run, built))
        count_build(entry.build)
        if entry.version.id != run.version.id:
            _tell_new_version(context, entry.version, built)
        return MaterializeResult(
            value=None,
            metadata={
                "model_id": built.model_id,
                "version": entry.version.version,
                "state": entry.version.state.value,
                "runner_image": built.image,
                "digest": built.image_digest,
                "unchanged": entry.unchanged,
                "weights_sha256": run.version.weights_sha256 or "none",
                "build_id": str(built.id),
                "log_url": entry.build.log_url,
            },
        )


class _Entry(NamedTuple):
    """The build as it ended, the version that it led to, and whether that was so before."""

    build: Build
    version: ModelVersion
    unchanged: bool


async def _register(db: Store, run: BuildRun, built: Build) -> _Entry:
    ended = await db.builds.move(built.id, BuildState.SUCCEEDED)
    if ended is None:
        raise BuildCanceled("register: the build was canceled")
    unchanged = built.rebuild_of is not None and built.image == run.version.runner_image
    if unchanged:
        version = run.version
        said = f"the digest is {built.image_digest}, as before: {version.version} stays as it is"
    elif built.rebuild_of is not None:
        version = await _add_version(db, run.version, built)
        said = (
            f"another digest than {run.version.version}'s: registered as {version.version}, ready"
        )
    else:
        ready = await db.models.move(
            run.version.id, VersionState.READY, runner_image=built.image,
            image_digest=built.image_digest, input_schema=built.input_schema,
            output_schema=built.output_schema,
        )  # fmt: skip
        if ready is None:
            raise BuildFailed("register: the version was changed meanwhile; build a new version")
        version, said = ready, f"{built.model_id} {built.version} is ready with {built.image}"
    run.log.line(_STEP, said)
    # While the row is locked: a cancel that comes now finds a build that has ended, and a reader
    # who sees it succeeded finds the whole log.
    log_url = await asyncio.to_thread(run.log.close, BuildState.SUCCEEDED)
    await db.builds.update(
        built.id, log_url=log_url, log_lines=run.log.lines, unchanged=unchanged,
        version=version.version, version_id=version.id,
    )  # fmt: skip
    return _Entry(replace(ended, log_url=log_url), version, unchanged)


async def _add_version(db: Store, old: ModelVersion, built: Build) -> ModelVersion:
    """A ready version beside the old one, which is immutable: `<version>+<date>`, and a number."""
    for name in rebuilt_names(old.version, datetime.now(UTC)):
        made = await db.models.create_draft(
            id=uuid7(), model_id=old.model_id, version=name, template=old.template,
            modality=old.modality, values={
                "weights_uri": old.weights_uri, "weights_url": old.weights_url,
                "weights_sha256": old.weights_sha256, "weights_size_bytes": old.weights_size_bytes,
                "env": dict(old.env), "resources": dict(old.resources), "build_id": built.id,
                "runner_image": built.image, "image_digest": built.image_digest,
                "input_schema": built.input_schema, "output_schema": built.output_schema,
            },
        )  # fmt: skip
        if made is not None:
            ready = await db.models.move(made.id, VersionState.READY)
            assert ready is not None  # made in this transaction
            return ready
    raise BuildFailed(f"register: every name for a rebuild of {old.version} is taken")


def _tell_new_version(context: AssetExecutionContext, version: ModelVersion, built: Build) -> None:
    """The new version's partition, with what is in it: this run is the one of the old version."""
    partition = partition_key(version.model_id, version.version)
    context.instance.add_dynamic_partitions(PARTITIONS, [partition])
    metadata = {
        "image": built.image, "digest": built.image_digest, "build_id": str(built.id),
        "template_hash": built.template_hash, "base_digest": built.base_digest,
    }  # fmt: skip
    for key in (RUNNER_IMAGE, MODEL_VERSION):
        context.instance.report_runless_asset_event(
            AssetMaterialization(
                key, partition=partition, metadata={k: v for k, v in metadata.items() if v}
            )
        )
