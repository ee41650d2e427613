"""What a run could not say itself: its build ends when it was killed or never began."""

from uuid import UUID

from dagster import (
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunFailureSensorContext,
    RunStatusSensorContext,
    run_failure_sensor,
    run_status_sensor,
)
from dagster._core.storage.tags import WILL_RETRY_TAG

from assets.build_run import end_build
from assets.jobs import build_runner
from resources import BuildingResource, ObjectsResource, StoreResource, StreamsResource
from vyvo_dagster.building.log import BuildLog
from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.execution.names import BUILD_ID_TAG, LOST_TAG
from vyvo_dagster.streams import keys

__all__ = ["build_canceled", "build_failed"]


@run_failure_sensor(
    monitored_jobs=[build_runner],
    minimum_interval_seconds=10,
    default_status=DefaultSensorStatus.RUNNING,
    description="Record the failure of builds whose run could not do so.",
)
def build_failed(
    context: RunFailureSensorContext,
    store: StoreResource,
    streams: StreamsResource,
    objects: ObjectsResource,
    building: BuildingResource,
) -> None:
    """A run that Dagster will retry keeps its build."""
    run = context.dagster_run
    current = context.instance.get_run_by_id(run.run_id) or run
    if current.tags.get(WILL_RETRY_TAG) == "true":
        return  # the retry goes on with the build
    why = " ".join((context.failure_event.message or "the run failed").split())
    group = context.instance.get_run_group(run.run_id) if run.root_run_id else None
    runs = {run.run_id} | ({r.run_id for r in group[1]} if group else set())
    _end(run, runs, BuildState.FAILED, f"run: {why}"[:1000], store, streams, objects, building)


@run_status_sensor(
    run_status=DagsterRunStatus.CANCELED,
    monitored_jobs=[build_runner],
    minimum_interval_seconds=10,
    default_status=DefaultSensorStatus.RUNNING,
    description="Record the cancellation of builds whose run could not do so.",
)
def build_canceled(
    context: RunStatusSensorContext,
    store: StoreResource,
    streams: StreamsResource,
    objects: ObjectsResource,
    building: BuildingResource,
) -> None:
    """A run that was ended because its message was lost leaves its build to the next run."""
    if LOST_TAG in context.dagster_run.tags:
        return
    run = context.dagster_run
    _end(run, {run.run_id}, BuildState.CANCELED, None, store, streams, objects, building)


def _end(
    run: DagsterRun,
    runs: set[str],
    state: BuildState,
    error: str | None,
    store: StoreResource,
    streams: StreamsResource,
    objects: ObjectsResource,
    building: BuildingResource,
) -> None:
    """End the run's build, unless it has ended; `runs` are this run and those that it retried."""
    tag = run.tags.get(BUILD_ID_TAG)
    if tag is not None:
        build = store.call(lambda db: db.builds.get(UUID(tag)))
    else:
        build = store.call(lambda db: db.builds.of_runs([run.run_id]))
    if build is None or not (build.run_id is None or build.run_id in runs):
        return  # the run has no build, or another run has it
    if build.state in BUILD.terminal and build.log_url is not None:
        return
    with streams.connection() as redis:
        spool = building.scratch(str(build.id)) / "log.jsonl"
        log = BuildLog(str(build.id), spool, redis, keys.build_log(build.id), objects.store())
        if error is not None:
            log.line("run", error)
        end_build(build, build.run_id or run.run_id, log, store, state, error)
