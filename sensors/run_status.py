"""What a run could not say itself: its build ends when it was killed or never began."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunFailureSensorContext,
    RunsFilter,
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

__all__ = ["build_canceled", "build_failed", "end_abandoned"]

_ABANDONED: Final = timedelta(minutes=5)


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


def end_abandoned(
    instance: DagsterInstance,
    store: StoreResource,
    streams: StreamsResource,
    objects: ObjectsResource,
    building: BuildingResource,
) -> None:
    """End the builds at work whose run ended long ago, or is unknown to Dagster.

    The sensors above see each run's end once. Where that once was lost, a build would keep its
    place for ever.
    """
    for build in store.call(lambda db: db.build_queue.at_work(_ABANDONED)):
        run = None if build.run_id is None else instance.get_run_by_id(build.run_id)
        if run is not None:
            group = instance.get_run_group(run.run_id)
            runs = [run, *(group[1] if group else ())]
            # A run that is to be retried is retried within moments.
            if any(not r.is_finished for r in runs) or _ended_lately(instance, runs):
                continue
        why = "run: its run has ended without ending it, or is unknown to Dagster"
        with streams.connection() as redis:
            spool = building.log_spool(str(build.id))
            log = BuildLog(str(build.id), spool, redis, keys.build_log(build.id), objects.store())
            log.line("run", why)
            end_build(build, build.run_id or "", log, store, BuildState.FAILED, why)


def _ended_lately(instance: DagsterInstance, runs: Sequence[DagsterRun]) -> bool:
    records = instance.get_run_records(RunsFilter(run_ids=[run.run_id for run in runs]))
    last = max((record.end_time or record.start_time or 0.0 for record in records), default=0.0)
    return time.time() - last < _ABANDONED.total_seconds()


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
        spool = building.log_spool(str(build.id))
        log = BuildLog(str(build.id), spool, redis, keys.build_log(build.id), objects.store())
        if error is not None:
            log.line("run", error)
        end_build(build, build.run_id or run.run_id, log, store, state, error)
