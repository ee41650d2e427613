"""What the orchestrator orders from an agent, and what the agent reports of an attempt."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Artifact",
    "AttemptStatus",
    "CancelOrder",
    "CompletionReport",
    "JobError",
    "OrderKind",
    "ProgressReport",
    "RunOrder",
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")


class OrderKind(StrEnum):
    """The `kind` field of an entry in a node's stream."""

    RUN = "run"
    CANCEL = "cancel"
    SYNC = "sync"
    """Send a heartbeat now: the desired assignments changed. No body."""


class RunOrder(_Model):
    """Run one attempt. The lease is renewed by naming the attempt in heartbeats."""

    job_id: UUID
    attempt: int = Field(ge=1)
    assignment_id: UUID
    model_id: str
    version: str
    input: dict[str, Any]
    traceparent: str | None = None


class CancelOrder(_Model):
    """Cancel one attempt: signal, 10 s of grace, then kill the runner."""

    job_id: UUID
    attempt: int = Field(ge=1)


class AttemptStatus(StrEnum):
    """How an attempt ended, as its agent reports it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    HANDED_BACK = "handed_back"
    """The agent stops before the attempt ended; it goes back to the queue uncharged."""


class Artifact(_Model):
    """One artifact in the standard shape. `url` is `s3://bucket/key`."""

    type: Annotated[str, Field(max_length=32)]
    url: Annotated[str, Field(max_length=2048, pattern=r"^s3://[a-z0-9.-]{3,63}/[^\s]+$")]
    size_bytes: int = Field(ge=0)
    mime_type: Annotated[str, Field(max_length=255)]
    expires_at: datetime | None = None


class JobError(_Model):
    """Why an attempt or a job failed; `code` is stable."""

    code: Annotated[str, Field(max_length=64)]
    message: Annotated[str, Field(max_length=8192)]


class ProgressReport(_Model):
    """Body of `POST /api/jobs/{id}/progress`. The first report marks the job running."""

    attempt: int = Field(ge=1)
    fraction: float | None = Field(default=None, ge=0, le=1)
    logs: list[Annotated[str, Field(max_length=16384)]] = Field(
        default_factory=list, max_length=1000
    )


class CompletionReport(_Model):
    """Body of `POST /api/jobs/{id}/complete`. `timings` are seconds per phase."""

    attempt: int = Field(ge=1)
    status: AttemptStatus
    artifacts: list[Artifact] = Field(default_factory=list[Artifact], max_length=1024)
    output: Any = None
    error: JobError | None = None
    timings: dict[str, float] = Field(default_factory=dict, max_length=32)
