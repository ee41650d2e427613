"""The jobs that keep the house: retention, and rebuilding what has grown old."""

import shutil
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from dagster import OpExecutionContext, job, op

from ops.rebuilds import request_rebuild, stale_versions
from resources import BuildingResource, RetentionResource, StoreResource
from vyvo_dagster.domain.build import BUILD
from vyvo_dagster.errors import Conflict
from vyvo_dagster.store.database import Store

__all__ = ["rebuild_stale", "retention"]

_AT_ONCE: Final = 5000


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


@op(description="Delete ended webhook deliveries, unreadable entries and node events that are old.")
def purge_records(
    context: OpExecutionContext, store: StoreResource, retention: RetentionResource
) -> None:
    """Some thousand rows a transaction, so that none holds its locks for long."""
    purges: dict[str, Callable[[Store], Awaitable[int]]] = {
        "webhook deliveries": lambda db: db.webhooks.purge(retention.webhooks, _AT_ONCE),
        "unreadable entries": lambda db: db.dead_letters.purge(retention.dead_entries, _AT_ONCE),
        "events of nodes": lambda db: db.nodes.purge_events(retention.node_events, _AT_ONCE),
    }
    for what, purge in purges.items():
        purged = 0
        while found := store.call(purge):
            purged += found
        context.log.info("%d %s deleted", purged, what)


@job(description="Daily: forget old idempotency keys and records, remove scratch of ended builds.")
def retention() -> None:
    """Independent of one another: one that fails does not hold the others up."""
    purge_idempotency_keys()
    purge_records()
    remove_build_scratch()


@op(description="Ask for a rebuild of every serving version whose image is stale.")
def request_rebuilds(
    context: OpExecutionContext, store: StoreResource, building: BuildingResource
) -> list[str]:
    """Returns the partition keys of what is rebuilt."""
    requested: list[str] = []
    for stale in stale_versions(store, building):
        try:
            build = store.call(lambda db, stale=stale: request_rebuild(db, stale))
        except Conflict as error:
            context.log.info("%s", error.detail)
            continue
        context.log.info("%s: %s; build %s", stale.partition, stale.why, build.id)
        requested.append(stale.partition)
    return requested


@job(description="Build every serving version once more whose image is stale.")
def rebuild_stale() -> None:
    """See request_rebuilds."""
    request_rebuilds()
