"""What jobs look like over REST; what agents report is in `vyvo_dagster.protocol.job`."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from api.artifacts.schemas import ArtifactView
from api.fields import Body
from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.domain.webhook import DeliveryState
from vyvo_dagster.protocol.job import JobError
from vyvo_dagster.store.records import Job, JobAttempt
from vyvo_dagster.store.submissions import NewJob

__all__ = [
    "AttemptView",
    "BatchAccepted",
    "BatchRequest",
    "JobAccepted",
    "JobRequest",
    "JobSummary",
    "JobView",
    "PriorityChange",
    "ProgressAnswer",
    "ReportAnswer",
    "Webhook",
    "WebhookView",
    "job_summary",
    "job_view",
]


class Webhook(Body):
    """Where a job's end is told, signed. The result is kept whether or not that succeeds."""

    url: str = Field(
        max_length=2048, description="https, at a public host.",
        examples=["https://hooks.example.com/vyvo"],
    )  # fmt: skip
    events: list[Literal["succeeded", "failed", "canceled", "expired"]] | None = Field(
        None, min_length=1, max_length=4, description="Which ends; unset: all."
    )


class JobRequest(Body):
    """One prediction to make."""

    model_id: str = Field(max_length=4096, examples=["vyvo/digits"])
    version: str | None = Field(
        None,
        max_length=4096,
        description="Unset takes the active version, else the newest ready one.",
    )
    input: dict[str, Any] = Field(
        description="Checked against the version's input schema before it is queued.",
        examples=[{"digit": 7, "count": 16, "steps": 40, "seed": 1}],
    )
    priority: Priority = Priority.STANDARD
    ttl_seconds: int | None = Field(
        None, gt=0, le=7 * 86400,
        description="Life in the queue; unset: 600 s for interactive, 24 h otherwise.",
    )  # fmt: skip
    timeout_seconds: int | None = Field(
        None, gt=0, le=7 * 86400,
        description="Longest time on a runner; unset: the version's own, else 3,600 s.",
    )  # fmt: skip
    webhook: Webhook | None = None


class WebhookView(BaseModel):
    """A delivery. `id` is its `webhook-id`, the same at each try; five tries, then it has failed."""

    id: UUID
    event: str = Field(examples=["job.succeeded"])
    url: str
    state: DeliveryState
    tries: int
    next_try_at: datetime | None = Field(description="While it is pending.")
    last_status: int | None = Field(description="HTTP status of the last try, if it got one.")
    last_error: str | None
    created_at: datetime
    delivered_at: datetime | None


class BatchRequest(Body):
    """Jobs to queue together: all of them, or none where one is wrong."""

    jobs: Annotated[list[JobRequest], Field(min_length=1, max_length=200)]


class JobAccepted(BaseModel):
    """A job was queued. `eta_seconds` is null while no node has the model or no job of it has ended."""

    job_id: UUID
    status: JobState
    queue_position: int
    eta_seconds: float | None
    detail: str | None = Field(
        None, examples=["no ready node has vyvo/digits@v1; the job waits up to 86400 s"]
    )

    @classmethod
    def of(
        cls, job: NewJob, position: int, ready_nodes: int, mean_seconds: float | None
    ) -> "JobAccepted":
        """The answer to a new job. The ETA takes `mean_seconds` a job on each ready node."""
        eta = detail = None
        if not ready_nodes:
            detail = (
                f"no ready node has {job.model_id}@{job.version}; "
                f"the job waits up to {job.ttl_seconds:.0f} s"
            )
        elif mean_seconds is not None:
            eta = round(mean_seconds * math.ceil(position / ready_nodes), 3)
        return cls(
            job_id=job.id, status=JobState.QUEUED, queue_position=position, eta_seconds=eta,
            detail=detail,
        )  # fmt: skip


class BatchAccepted(BaseModel):
    """Jobs were queued, in the order of the request."""

    jobs: list[JobAccepted]


class PriorityChange(Body):
    """What may change of a job that waits."""

    priority: Priority


class AttemptView(BaseModel):
    """One attempt. `outcome` is null while it is under way; `error_message` says why it failed."""

    attempt: int
    node_id: UUID
    outcome: str | None
    error_code: str | None
    error_message: str | None
    dispatched_at: datetime
    ended_at: datetime | None


class JobSummary(BaseModel):
    """A job without what it takes and makes. Timings in seconds by phase."""

    job_id: UUID
    status: JobState
    tenant: str
    model_id: str
    version: str
    version_id: UUID
    priority: Priority
    attempt: int
    max_attempts: int
    timeout_seconds: int
    node_id: UUID | None
    progress: float | None
    error: JobError | None
    cancel_requested: bool
    timings: dict[str, float]
    created_at: datetime
    expires_at: datetime
    dispatched_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None


class JobView(JobSummary):
    """A job."""

    input: dict[str, Any]
    output: Any
    artifacts: list[ArtifactView]
    attempts: list[AttemptView]
    queue_position: int | None = Field(None, description="While the job waits.")


class ProgressAnswer(BaseModel):
    """The report was taken."""

    status: JobState
    cancel_requested: bool


class ReportAnswer(BaseModel):
    """The completion was taken. `job_status` is the job's, which a handed back attempt queues again."""

    job_id: UUID
    attempt: int
    job_status: JobState


def job_summary(job: Job) -> JobSummary:
    """A job's row as it is listed."""
    return JobSummary(**_summary(job))


def job_view(
    job: Job,
    artifacts: Sequence[ArtifactView],
    attempts: Sequence[JobAttempt],
    position: int | None,
) -> JobView:
    """A job's row as it is shown."""
    return JobView(
        **_summary(job), input=dict(job.input), output=job.output, artifacts=list(artifacts),
        attempts=[AttemptView.model_validate(a, from_attributes=True) for a in attempts],
        queue_position=position,
    )  # fmt: skip


def _summary(job: Job) -> dict[str, Any]:
    error = None
    if job.error_code is not None:
        error = JobError(code=job.error_code, message=(job.error_message or "")[:8192])
    return {
        "job_id": job.id, "status": job.state, "tenant": job.tenant, "model_id": job.model_id,
        "version": job.version, "version_id": job.version_id, "priority": job.priority,
        "attempt": job.attempt, "max_attempts": job.max_attempts,
        "timeout_seconds": job.timeout_seconds, "node_id": job.node_id,
        "progress": job.progress, "error": error,
        "cancel_requested": job.cancel_requested_at is not None, "timings": dict(job.timings),
        "created_at": job.created_at, "expires_at": job.expires_at,
        "dispatched_at": job.dispatched_at, "started_at": job.started_at,
        "completed_at": job.completed_at,
    }  # fmt: skip
