"""What runs by the clock."""

from dagster import (
    DefaultScheduleStatus,
    RunConfig,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    schedule,
)

from ops.artifacts import ArtifactsPass, collect, collect_artifacts
from ops.collection import collect_unreferenced
from ops.maintenance import rebuild_stale, retention
from ops.rebuilds import stale_versions
from resources import BuildingResource, StoreResource

__all__ = [
    "artifact_expiry", "artifact_sweep", "changed_rebuild", "daily_collection", "daily_retention",
    "weekly_rebuild",
]  # fmt: skip

artifact_expiry = ScheduleDefinition(
    name="artifact_expiry",
    job=collect_artifacts,
    cron_schedule="10 * * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    run_config=RunConfig({collect.name: ArtifactsPass(orphans=False)}),
    description="Mark artifacts whose end has come and delete their objects.",
)

artifact_sweep = ScheduleDefinition(
    name="artifact_sweep",
    job=collect_artifacts,
    cron_schedule="40 2 * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    run_config=RunConfig({collect.name: ArtifactsPass()}),
    description="The same, and delete objects without a row, mark rows without an object.",
)

daily_retention = ScheduleDefinition(
    name="daily_retention",
    job=retention,
    cron_schedule="30 3 * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Forget old idempotency keys and records, remove scratch of ended builds.",
)


daily_collection = ScheduleDefinition(
    name="daily_collection",
    job=collect_unreferenced,
    cron_schedule="0 5 * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Remove images, environments and wheelhouses that nobody refers to any more.",
)


@schedule(
    job=rebuild_stale,
    cron_schedule="0 4 * * 0",
    execution_timezone="UTC",
    description="Build once more what serves and is stale: its template or base image changed, or its "
    "image is more than a week old. Off until someone turns it on: it uses build hosts and adds versions.",
)
def weekly_rebuild(
    context: ScheduleEvaluationContext, store: StoreResource, building: BuildingResource
) -> RunRequest | SkipReason:
    """One run, unless nothing is stale."""
    if not stale_versions(store, building):
        return SkipReason("no serving version is stale")
    return RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%d}")


@schedule(
    job=rebuild_stale,
    cron_schedule="15 * * * *",
    execution_timezone="UTC",
    description="The same once an hour, only where a template or a base image changed. Off until "
    "someone turns it on.",
)
def changed_rebuild(
    context: ScheduleEvaluationContext, store: StoreResource, building: BuildingResource
) -> RunRequest | SkipReason:
    """One run, unless nothing changed."""
    if not stale_versions(store, building, max_age=None):
        return SkipReason("no template and no base image of a serving version changed")
    return RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%dT%H}")
