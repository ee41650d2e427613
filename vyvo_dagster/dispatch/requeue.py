"""What happens to a job whose attempt is gone, and the events that tell of it.

Shared by the orchestrator (a lease that ended), the api (a node that joined anew or handed work
back) and tests; the caller's transaction covers the row and its outbox entry.
"""

from collections.abc import Iterable
from typing import Any

from vyvo_dagster.domain.job import JobEventKind, JobState, after_lost_attempt, backoff
from vyvo_dagster.store.attempts import Gone
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Job
from vyvo_dagster.streams import events, keys, queues
from vyvo_dagster.streams.client import AsyncRedis

__all__ = [
    "announce",
    "completion",
    "publish_job_changes",
    "requeue_lost",
    "retry_due",
    "stream_of",
]


async def announce(store: Store, job: Job) -> None:
    """Put a queued job's stream entry into the outbox."""
    await store.outbox.add(stream_of(job), queues.entry_fields(job.id, job.created_at))


def stream_of(job: Job) -> str:
    """The queue that a job waits in."""
    return keys.jobs(job.model_id, job.version, job.priority, job.tenant)


async def requeue_lost(store: Store, job: Job, gone: Gone, *, charged: bool) -> Job | None:
    """Queue a job in flight again, or end it where its attempts are used up or a cancel waits.

    One whose attempt is charged waits first, longer with each, and is announced by `retry_due`.

    Args:
        gone: how the attempt ended. What it gives as a reason is the job's if it was the last.
        charged: whether the attempt counts towards `max_attempts`.

    Returns:
        The job as it is now; None when the attempt is not the current one any more.
    """
    if job.cancel_requested_at is not None:
        said = "canceled; its attempt was gone before it ended"
        return await store.attempts.end_lost(job, JobState.CANCELED, "canceled", said, gone)
    handed_back = job.handed_back if charged else job.handed_back + 1
    after = after_lost_attempt(job.attempt, handed_back, job.max_attempts)
    if after.error_code is not None:
        code, message = gone.code, gone.message
        if code is None:
            code = after.error_code
            message = f"the node was lost in the last of {job.max_attempts} attempts"
        return await store.attempts.end_lost(job, after.state, code, message or "", gone)
    delay = backoff(job.attempt - handed_back) if charged else None
    again = await store.attempts.requeue(job, gone, charged=charged, delay=delay)
    if again is not None and again.retry_at is None:
        await announce(store, again)
    return again


async def retry_due(store: Store, limit: int) -> int:
    """Announce the jobs whose time to be tried again has come; how many they were."""
    due = await store.attempts.retries_due(limit)
    for job in due:
        await announce(store, job)
    return len(due)


def completion(job: Job, artifacts: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
    """Data of a `completed` event."""
    error = None
    if job.error_code is not None:
        error = {"code": job.error_code, "message": job.error_message or ""}
    return {
        "job_id": str(job.id),
        "status": str(job.state),
        "attempt": job.attempt,
        "output": job.output,
        "artifacts": list(artifacts),
        "error": error,
        "timings": dict(job.timings),
    }


async def publish_job_changes(redis: AsyncRedis, jobs: Iterable[Job]) -> None:
    """Tell clients, after the commit, that jobs were requeued or have ended, and dispatch that
    slots are free.
    """
    told: list[tuple[str, str, dict[str, Any]]] = []
    for job in jobs:
        if job.state is JobState.QUEUED:
            told.append(
                (
                    str(job.id),
                    JobEventKind.REQUEUED,
                    {"status": str(job.state), "attempt": job.attempt},
                )
            )
        else:
            told.append((str(job.id), JobEventKind.COMPLETED, completion(job)))
    if told:
        await events.publish_many(redis, told)
        await redis.publish(keys.WAKE, "requeue")
