"""The jobs that keep the house: retention, and rebuilding what has grown old."""

import shutil
from uuid import UUID

from dagster import OpExecutionContext, job, op

from ops.rebuilds import request_rebuild, stale_versions
from resources import BuildingResource, StoreResource
from vyvo_dagster.domain.build import BUILD
from vyvo_dagster.errors import VersionExists

__all__ = ["rebuild_stale", "retention"]


@op(description="Forget answers kept under an Idempotency-Key for more than 24 hours.")
def purge_idempotency_keys(context: OpExecutionContext, store: StoreResource) -> None:
    """Delete what no caller may ask for again."""
    purged = store.call(lambda db: db.idempotency.purge())
    context.log.info("%d answers forgotten", purged)


@op(
    description="Remove the scratch folders of builds that have ended; their logs are in the object store."
)
def remove_build_scratch(
    context: OpExecutionContext, store: StoreResource, building: BuildingResource
) -> None:
    """Delete `<data_dir>/builds/<id>` of every build that has ended with its log stored."""
    removed = 0
    for folder in (building.root / "builds").glob("*"):
        try:
            build_id = UUID(folder.name)
        except ValueError:
            continue
        build = store.call(lambda db, key=build_id: db.builds.get(key))
        if build is None or (build.state in BUILD.terminal and build.log_url is not None):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    context.log.info("%d scratch folders removed", removed)


@job(description="Daily: forget old idempotency keys, remove scratch of ended builds.")
def retention() -> None:
    """Independent of one another: one that fails does not hold the other up."""
    purge_idempotency_keys()
    remove_build_scratch()


@op(description="Ask for a new build of every serving version whose image is stale.")
def request_rebuilds(context: OpExecutionContext, store: StoreResource) -> list[str]:
    """Returns the partition keys of the new versions; they are ready when built, and not yet active."""
    requested: list[str] = []
    for stale in stale_versions(store, context.instance):
        try:
            made = store.call(lambda db, stale=stale: request_rebuild(db, stale))
        except VersionExists:
            context.log.info("%s is being rebuilt already", stale.partition)
            continue
        context.log.info("%s: %s; building %s", stale.partition, stale.why, made)
        requested.append(made)
    return requested


@job(description="Build a new version of every serving version whose image is stale.")
def rebuild_stale() -> None:
    """See request_rebuilds."""
    request_rebuilds()
