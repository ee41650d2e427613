"""/api/jobs: the gateway, and the agents' reports."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header
from fastapi.responses import Response

from api import sse
from api.auth import IsNode, JobsRead, JobsWrite, own_node
from api.context import Ctx
from api.fields import Cursor, Limit, Listing, listing
from api.idempotency import OnceDep
from api.jobs import dead_letters, events, service, submission, waiting
from api.jobs.dead_letters import DeadLetter, Requeue
from api.jobs.schemas import (
    BatchAccepted,
    BatchRequest,
    JobAccepted,
    JobRequest,
    JobSummary,
    JobView,
    PriorityChange,
    ProgressAnswer,
    ReportAnswer,
    job_summary,
)
from vyvo_dagster.domain.job import JobState
from vyvo_dagster.domain.model import parse_model_id
from vyvo_dagster.protocol.job import CompletionReport, ProgressReport, ReportItem

__all__ = ["dead_letters_router", "router"]

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
dead_letters_router = APIRouter(prefix="/api/dead-letters", tags=["jobs"])

Traceparent = Annotated[str | None, Header(max_length=256, description="W3C trace context.")]


Prefer = Annotated[
    str | None, Header(max_length=256, description="`wait=N` (RFC 7240), N seconds up to 60.")
]


@router.post(
    "", status_code=202, summary="Submit a job", response_model=JobAccepted,
    responses={
        200: {
            "model": JobView,
            "description": "The job, which has ended within the time that `Prefer` named.",
        }
    },
)  # fmt: skip
async def submit(
    body: JobRequest, principal: JobsWrite, context: Ctx, request: OnceDep,
    response: Response, traceparent: Traceparent = None, prefer: Prefer = None,
) -> JobAccepted | Response:  # fmt: skip
    """Where no node has the model ready the job waits, says so in `detail`, and expires after its TTL.

    With `Prefer: wait=N` the answer is 200 with the job once it has ended, in whichever way, and 202
    as ever where it has not within N seconds.
    """
    trace = submission.traceparent_or_none(traceparent)
    response.headers.update(await context.rates.take(principal, 1))
    (accepted,) = await submission.submit(context, principal, [body], request, trace)
    seconds = waiting.seconds_of(prefer)
    if seconds is not None:
        job = await waiting.finished(context, principal, accepted.job_id, seconds)
        if job is not None:
            headers = {**response.headers, "Preference-Applied": f"wait={seconds}"}
            return Response(job.model_dump_json(), 200, headers, "application/json")
    return accepted


@router.post("/batch", status_code=202, summary="Submit jobs together")
async def submit_batch(
    body: BatchRequest, principal: JobsWrite, context: Ctx, request: OnceDep,
    response: Response, traceparent: Traceparent = None,
) -> BatchAccepted:  # fmt: skip
    """All are queued, or none where one is wrong."""
    trace = submission.traceparent_or_none(traceparent)
    response.headers.update(await context.rates.take(principal, len(body.jobs)))
    return BatchAccepted(
        jobs=await submission.submit(context, principal, body.jobs, request, trace)
    )


@router.get("", summary="List jobs")
async def browse(
    principal: JobsRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50,
    status: JobState | None = None, model_id: str | None = None,
) -> Listing[JobSummary]:  # fmt: skip
    """Newest first. A key that is no admin's sees its own tenant's jobs."""
    if model_id is not None:
        parse_model_id(model_id)
    async with context.database.transaction() as store:
        found = await store.jobs.browse(principal.sees, cursor, limit, status, model_id)
    shown, next_cursor = listing(found, limit)
    return Listing(items=[job_summary(j) for j in shown], next_cursor=next_cursor)


@router.get("/{job_id}", summary="Get a job")
async def get(job_id: UUID, principal: JobsRead, context: Ctx) -> JobView:
    """A job with its artifacts, each with a URL that reads it."""
    async with context.database.transaction() as store:
        return await service.view(store, context, await service.find(store, principal, job_id))


@router.patch("/{job_id}", summary="Change the priority of a job that waits")
async def set_priority(
    job_id: UUID, body: PriorityChange, principal: JobsWrite, context: Ctx
) -> JobView:
    """409 once it does not wait any more."""
    return await service.set_priority(context, principal, job_id, body.priority)


@router.post("/{job_id}/cancel", summary="Cancel a job")
async def cancel(job_id: UUID, principal: JobsWrite, context: Ctx) -> JobView:
    """At once where it waits; where it runs, its runner gets a signal and 10 s. A repeat changes nothing."""
    return await service.cancel(context, principal, job_id)


@dead_letters_router.get("", summary="List dead letters")
async def browse_dead_letters(
    principal: JobsRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50,
    model_id: str | None = None,
) -> Listing[DeadLetter]:  # fmt: skip
    """Jobs that failed through no fault of their prediction (lost nodes, crashed runners), and, for an
    admin, queue entries that could not be read. Newest first.
    """
    if model_id is not None:
        parse_model_id(model_id)
    return await dead_letters.browse(context, principal, cursor, limit, model_id)


@router.post("/{job_id}/requeue", status_code=202, summary="Queue a job again")
async def requeue(
    job_id: UUID, principal: JobsWrite, context: Ctx, request: OnceDep, response: Response,
    body: Requeue | None = None,
) -> JobAccepted:  # fmt: skip
    """One that has failed, expired or been canceled, under its own id with fresh attempts; what it left
    is replaced. 409 for any other. The key's limits hold as they do for a new job.
    """
    response.headers.update(await context.rates.take(principal, 1))
    return await dead_letters.requeue(
        context, principal, job_id, body or Requeue.model_validate({}), request
    )


@router.get(
    "/{job_id}/events", summary="Follow a job", response_class=Response,
    responses={
        200: {
            "description": "SSE events: queued, loading, dispatched, started, progress, log, artifact, "
            "requeued, completed. The last 1,024 are kept for 24 h and replayed after `Last-Event-ID`.",
            "content": {"text/event-stream": {}},
        }
    },
)  # fmt: skip
async def follow(
    job_id: UUID, principal: JobsRead, context: Ctx, last_event_id: sse.LastEventId = None
) -> Response:
    """Ends after `completed`."""
    async with context.database.transaction() as store:
        job = await service.find(store, principal, job_id)
    stream = events.follow(context, job, last_event_id)
    return sse.event_stream("jobs.events", sse.until(context.stopping, stream))


@router.post("/{job_id}/progress", summary="Report an attempt's progress")
async def progress(
    job_id: UUID, body: ProgressReport, principal: IsNode, context: Ctx
) -> ProgressAnswer:
    """By the node's own credential. The first report marks the job running; a stale attempt gets 409."""
    report = ReportItem(job_id=job_id, progress=body)
    taken = await context.reports.take_one(own_node(principal), report)
    return ProgressAnswer(status=taken.status, cancel_requested=taken.cancel_requested)


@router.post("/{job_id}/complete", summary="Report an attempt's end")
async def complete(
    job_id: UUID, body: CompletionReport, principal: IsNode, context: Ctx
) -> ReportAnswer:
    """By the node's own credential. A stale attempt gets 409 and changes nothing; a repeat gets the same 200."""
    report = ReportItem(job_id=job_id, completion=body)
    taken = await context.reports.take_one(own_node(principal), report)
    return ReportAnswer(job_id=job_id, attempt=body.attempt, job_status=taken.status)
