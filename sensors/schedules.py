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
from ops.maintenance import rebuild_stale, retention
from ops.rebuilds import stale_versions
from resources import StoreResource

__all__ = ["artifact_expiry", "artifact_sweep", "daily_retention", "weekly_rebuild"]

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


@schedule(
    job=rebuild_stale,
    cron_schedule="0 4 * * 0",
    execution_timezone="UTC",
    description="Build new versions of what serves and is stale: its template changed, or its image is "
    "more than a week old. Off until someone turns it on: it uses build hosts and adds versions.",
)
def weekly_rebuild(
    context: ScheduleEvaluationContext, store: StoreResource
) -> RunRequest | SkipReason:
    """One run, unless nothing is stale."""
    stale = stale_versions(store, context.instance)
    if not stale:
        return SkipReason("no serving version is stale")
    return RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%d}")
