"""What agents report of attempts, fenced by the attempt's number."""

from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from api.context import Context
from api.fields import mended
from api.jobs.schemas import ProgressAnswer, ReportAnswer
from vyvo_dagster.dispatch.requeue import completion, requeue_lost
from vyvo_dagster.domain.job import JobEventKind, JobState
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import InvalidInput, NotFound, StaleAttempt
from vyvo_dagster.objects import parse_s3_uri
from vyvo_dagster.protocol.job import Artifact, AttemptStatus, CompletionReport, ProgressReport
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.jobs import IN_FLIGHT
from vyvo_dagster.store.records import Job
from vyvo_dagster.telemetry import metrics

__all__ = ["complete", "progress"]

_OUTPUTS = (Modality.IMAGE, Modality.VIDEO, Modality.AUDIO, Modality.TEXT)


async def progress(
    context: Context, node_id: UUID, job_id: UUID, report: ProgressReport
) -> ProgressAnswer:
    """Note an attempt's start, progress or log lines.

    Raises:
        StaleAttempt: it is not the job's current one on this node; nothing was changed.
    """
    attempt = report.attempt
    started: Job | None = None
    async with context.database.transaction() as store:
        job = None
        if report.fraction is not None or report.logs:
            # Most reports are of an attempt that runs: one statement.
            job = await store.attempts.progress(job_id, attempt, node_id, report.fraction)
        if job is None:
            started = job = await store.attempts.start(job_id, attempt, node_id)
            if started is None or report.fraction is not None:
                job = await store.attempts.progress(job_id, attempt, node_id, report.fraction)
        if job is None:
            await _check_exists(store, job_id)
            raise StaleAttempt(f"attempt {attempt} is not the current one of this job on this node")
    told: list[tuple[UUID, str, dict[str, Any]]] = []
    if started is not None:
        told.append((job_id, JobEventKind.STARTED, {"status": str(JobState.RUNNING), "attempt": attempt,
                                                    "node_id": str(node_id)}))  # fmt: skip
    if report.fraction is not None:
        told.append(
            (job_id, JobEventKind.PROGRESS, {"fraction": report.fraction, "attempt": attempt})
        )
    if report.logs:
        told.append((job_id, JobEventKind.LOG, {"lines": mended(report.logs), "attempt": attempt}))
    await context.announcer.events(told)
    return ProgressAnswer(status=job.state, cancel_requested=job.cancel_requested_at is not None)


async def complete(
    context: Context, node_id: UUID, job_id: UUID, report: CompletionReport
) -> ReportAnswer:
    """End an attempt, and with it the job, unless it is handed back. A repeat gets the same answer.

    Raises:
        StaleAttempt: it is not the job's current one on this node; nothing was changed.
        InvalidInput: an artifact is not in one of the output buckets.
    """
    for artifact in report.artifacts:
        _check_artifact(context, artifact)
    if report.status is AttemptStatus.HANDED_BACK:
        return await _hand_back(context, node_id, job_id, report)
    rows: list[dict[str, Any]] = []
    async with context.database.transaction() as store:
        error = report.error
        job = await store.attempts.complete(
            job_id, report.attempt, node_id, JobState(report.status.value),
            output=mended(report.output),
            error_code=None if error is None else mended(error.code),
            error_message=None if error is None else mended(error.message),
            timings={k: v for k, v in mended(report.timings).items() if v is not None},
        )  # fmt: skip
        if job is None:
            return await _repeat(store, node_id, job_id, report)
        rows = [_row(job, position, a) for position, a in enumerate(report.artifacts)]
        await store.artifacts.add_many(rows)
    shapes = [_shape(row) for row in rows]
    events: list[tuple[UUID, str, dict[str, Any]]] = [
        (job_id, JobEventKind.ARTIFACT, shape) for shape in shapes
    ]
    events.append((job_id, JobEventKind.COMPLETED, completion(job, shapes)))
    await context.announcer.events(events)
    context.announcer.wake()
    _measure(job)
    return ReportAnswer(job_id=job_id, attempt=report.attempt, job_status=job.state)


async def _hand_back(
    context: Context, node_id: UUID, job_id: UUID, report: CompletionReport
) -> ReportAnswer:
    async with context.database.transaction() as store:
        changed = None
        for job in await store.attempts.of_node(node_id):
            if job.id == job_id and job.attempt == report.attempt:
                changed = await requeue_lost(store, job, str(report.status), charged=False)
        if changed is None:
            return await _repeat(store, node_id, job_id, report)
    context.relay.kick()
    await context.announcer.changes([changed])
    return ReportAnswer(job_id=job_id, attempt=report.attempt, job_status=changed.state)


async def _repeat(
    store: Store, node_id: UUID, job_id: UUID, report: CompletionReport
) -> ReportAnswer:
    """The same answer for a report that was taken before, else StaleAttempt."""
    job = await _check_exists(store, job_id)
    kept = await store.attempts.get(job_id, report.attempt)
    if kept is not None and kept.node_id == node_id and kept.outcome == str(report.status):
        current = job.attempt == report.attempt and job.state not in IN_FLIGHT
        state = job.state if current else JobState.QUEUED
        return ReportAnswer(job_id=job_id, attempt=report.attempt, job_status=state)
    raise StaleAttempt(f"attempt {report.attempt} is not the current one of this job on this node")


async def _check_exists(store: Store, job_id: UUID) -> Job:
    job = await store.jobs.get(job_id, None)
    if job is None:
        raise NotFound("no such job")
    return job


def _check_artifact(context: Context, artifact: Artifact) -> None:
    bucket = parse_s3_uri(artifact.url).bucket
    allowed = [context.objects.bucket(modality) for modality in _OUTPUTS]
    if bucket not in allowed:
        raise InvalidInput(
            f"artifact {artifact.url[:200]} is in none of the buckets {', '.join(allowed)}"
        )


def _row(job: Job, position: int, artifact: Artifact) -> dict[str, Any]:
    return {
        "id": uuid7(), "tenant": job.tenant, "job_id": job.id, "position": position,
        "type": mended(artifact.type), "url": artifact.url, "size_bytes": artifact.size_bytes,
        "mime_type": mended(artifact.mime_type), "expires_at": artifact.expires_at,
    }  # fmt: skip


def _shape(row: dict[str, Any]) -> dict[str, Any]:
    expires_at = row["expires_at"]
    return {
        "id": str(row["id"]), "position": row["position"], "type": row["type"], "url": row["url"],
        "size_bytes": row["size_bytes"], "mime_type": row["mime_type"],
        "expires_at": None if expires_at is None else expires_at.isoformat(),
    }  # fmt: skip


def _measure(job: Job) -> None:
    metrics.JOBS.labels(job.model_id, str(job.state)).inc()
    if job.completed_at is None or job.dispatched_at is None:
        return
    spans = {
        "queue": job.dispatched_at - job.created_at,
        "run": job.completed_at - job.dispatched_at,
        "total": job.completed_at - job.created_at,
    }
    for phase, span in spans.items():
        metrics.JOB_LATENCY.labels(job.model_id, phase).observe(span.total_seconds())
