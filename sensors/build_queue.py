"""`build_queue`: launches the builds that the api did not launch itself.

The api launches builds at once by GraphQL; this sensor is what makes that safe. It takes the
builds that wait from the same queue, within the same limits, claims each row first, and so nothing
runs twice however the two race. Launches that came to nothing are made again, and builds whose run
has ended without ending them are ended.
"""

from uuid import UUID

from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunRequest,
    RunsFilter,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from dagster._core.storage.tags import PARTITION_NAME_TAG

from assets.jobs import build_runner
from resources import BuildingResource, ObjectsResource, StoreResource, StreamsResource
from sensors.run_status import end_abandoned
from vyvo_dagster.domain.build import partition_key
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.execution.lease import Lease, read_lease
from vyvo_dagster.execution.names import BUILD_ID_TAG, LOST_TAG, MODEL_VERSIONS, TRACE_TAG
from vyvo_dagster.store.records import Build
from vyvo_dagster.streams import build_hosts, entries, keys
from vyvo_dagster.streams.client import AsyncRedis

__all__ = ["build_queue"]

_CONSUMER = "build_queue"
_BATCH = 100
# Longer than a tick may take: then the tick that read the entry is dead.
_TAKE_OVER_MS = 120_000

_UNDER_WAY = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


@sensor(
    job=build_runner,
    minimum_interval_seconds=5,
    default_status=DefaultSensorStatus.RUNNING,
    description="Launch queued builds that nobody has launched.",
)
def build_queue(
    context: SensorEvaluationContext,
    store: StoreResource,
    streams: StreamsResource,
    objects: ObjectsResource,
    building: BuildingResource,
) -> SensorResult | SkipReason:
    """One run per claimed build; an entry is acknowledged once its row was looked at."""
    try:
        read = streams.call(_read)
    except Unavailable as error:
        # The rows alone suffice.
        context.log.warning("%s", error.detail)
        read = []
    # A claim on a build whose run still waits for a worker only keeps it from the next ticks.
    requests = [
        _request(build)
        for build in store.call(lambda db: db.build_queue.claim_stale(_BATCH))
        if not _has_run(context.instance, streams, build.id)
    ]
    hosts = _hosts(streams)
    claimed = store.call(lambda db: db.build_queue.claim_next(building.limits, hosts))
    requests += [_request(build) for build in claimed]
    end_abandoned(context.instance, store, streams, objects, building)
    if read:
        streams.call(lambda redis: entries.acknowledge(redis, keys.GROUP_DAGSTER, read))
    if not requests:
        return SkipReason("no queued build waits for a launch")
    partitions = [request.partition_key for request in requests if request.partition_key]
    return SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[MODEL_VERSIONS.build_add_request(partitions)],
    )


def _request(build: Build) -> RunRequest:
    claimed = build.launch_claimed_at
    assert claimed is not None  # set by the claim
    partition = partition_key(build.model_id, build.version)
    # With the tag set, as a direct launch sets it, Dagster need not load all partitions to check it.
    tags = {BUILD_ID_TAG: str(build.id), PARTITION_NAME_TAG: partition}
    if build.traceparent is not None:
        tags[TRACE_TAG] = build.traceparent
    return RunRequest(
        run_key=f"{build.id}:{claimed.timestamp():.6f}", partition_key=partition, tags=tags
    )


async def _read(redis: AsyncRedis) -> list[entries.Entry]:
    new = await entries.read_new(redis, keys.GROUP_DAGSTER, _CONSUMER, keys.BUILDS, _BATCH)
    left = await entries.take_over(
        redis, keys.GROUP_DAGSTER, _CONSUMER, keys.BUILDS, _TAKE_OVER_MS, _BATCH
    )
    return [*new, *left]


def _hosts(streams: StreamsResource) -> int:
    try:
        return streams.call(build_hosts.count)
    except Unavailable:
        return 1


def _has_run(instance: DagsterInstance, streams: StreamsResource, id: UUID) -> bool:
    """Whether a run of the build waits or works; one whose message was lost is ended here."""
    found = instance.get_runs(RunsFilter(tags={BUILD_ID_TAG: str(id)}, statuses=_UNDER_WAY))
    if not found:
        return False
    with streams.connection() as redis:
        lost = [run for run in found if read_lease(redis, run.run_id) is Lease.LOST]
    for run in lost:
        _end_lost(instance, run)
    return len(lost) < len(found)


def _end_lost(instance: DagsterInstance, run: DagsterRun) -> None:
    instance.add_run_tags(run.run_id, {LOST_TAG: "true"})
    instance.report_run_canceled(
        run, "Its message was lost before a worker took it; launched again."
    )
