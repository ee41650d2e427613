"""What the orchestrator orders from an agent, and what the agent reports of an attempt."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from vyvo_dagster.domain.job import JobState
from vyvo_dagster.protocol.artifact import Artifact

__all__ = [
    "BATCH_BYTES",
    "BATCH_ITEMS",
    "AttemptStatus",
    "CancelOrder",
    "CompletionReport",
    "ItemProblem",
    "JobError",
    "MalformedReport",
    "OrderKind",
    "ProgressReport",
    "ReportBatch",
    "ReportBatchAnswer",
    "ReportItem",
    "ReportResult",
    "ReportedArtifact",
    "RunOrder",
]

BATCH_ITEMS: Final = 1024
"""Reports in one batch, at most."""
BATCH_BYTES: Final = 8 << 20
"""Size at which an agent closes a batch; a body of twice that is taken."""
_LAST_ATTEMPT: Final = (1 << 31) - 1


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
    timeout_seconds: float = Field(default=3600.0, gt=0)
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


def _in_calendar(time: datetime) -> datetime:
    # At the calendar's ends a time can be stored in UTC and not be read again in a local zone.
    if not 1900 < time.year < 9000:
        raise ValueError("is no time of this age")
    return time


class ReportedArtifact(Artifact):
    """An artifact as a report names it: its end is a time that can be stored."""

    expires_at: Annotated[datetime, AfterValidator(_in_calendar)] | None = None


class JobError(_Model):
    """Why an attempt or a job failed; `code` is stable."""

    code: Annotated[str, Field(max_length=64)]
    message: Annotated[str, Field(max_length=8192)]


class ProgressReport(_Model):
    """Body of `POST /api/jobs/{id}/progress`. The first report marks the job running."""

    attempt: int = Field(ge=1, le=_LAST_ATTEMPT)
    fraction: float | None = Field(default=None, ge=0, le=1)
    logs: list[Annotated[str, Field(max_length=16384)]] = Field(
        default_factory=list, max_length=1000
    )


class CompletionReport(_Model):
    """Body of `POST /api/jobs/{id}/complete`. `timings` are seconds per phase."""

    attempt: int = Field(ge=1, le=_LAST_ATTEMPT)
    status: AttemptStatus
    artifacts: list[ReportedArtifact] = Field(
        default_factory=list[ReportedArtifact], max_length=1024
    )
    output: Any = None
    error: JobError | None = None
    timings: dict[str, float] = Field(default_factory=dict, max_length=32)
    traceparent: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="W3C trace context of the attempt, where it is traced."
    )


class ReportItem(_Model):
    """One report of a batch: either progress or the attempt's end."""

    job_id: UUID
    progress: ProgressReport | None = None
    completion: CompletionReport | None = None


class MalformedReport(_Model):
    """What is left of an item that is none: whom it is about, where that can be told, and why."""

    job_id: UUID | None = None
    attempt: int | None = Field(default=None, ge=1, le=_LAST_ATTEMPT)
    ends: bool = False
    """It was to end the attempt."""
    detail: str


def _read_all(
    value: Any, handler: ValidatorFunctionWrapHandler
) -> list[ReportItem | MalformedReport]:
    """Items, in one go; where one is malformed one by one, since it must not refuse the others."""
    try:
        items: list[ReportItem | MalformedReport] = handler(value)
    except ValidationError as error:
        if any(not each["loc"] for each in error.errors(include_url=False, include_input=False)):
            raise
        return [_read(each) for each in value]
    if all(
        (i.progress is None) != (i.completion is None) for i in items if isinstance(i, ReportItem)
    ):
        return items
    return [_read(each) for each in value]


def _read(value: Any) -> ReportItem | MalformedReport:
    try:
        item = ReportItem.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        detail = f"{'.'.join(map(str, first['loc'])) or 'item'}: {first['msg']}"
        return _malformed(value, detail)
    if (item.progress is None) == (item.completion is None):
        return _malformed(value, "an item is either progress or completion")
    return item


def _malformed(value: Any, detail: str) -> MalformedReport:
    item: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    completion = item.get("completion")
    report = completion if isinstance(completion, Mapping) else item.get("progress")
    try:
        return MalformedReport(
            job_id=item.get("job_id"),
            attempt=report.get("attempt") if isinstance(report, Mapping) else None,
            ends=completion is not None,
            detail=detail,
        )
    except ValidationError:
        return MalformedReport(detail=detail)


if TYPE_CHECKING:
    _Items = list[ReportItem | MalformedReport]
else:
    # Documented as what it should be; what it is otherwise is made here, and never sent.
    _Items = list[ReportItem]


class ReportBatch(_Model):
    """Body of `POST /api/nodes/{id}/reports`, in the order in which things happened."""

    items: Annotated[_Items, Field(min_length=1, max_length=BATCH_ITEMS), WrapValidator(_read_all)]


class ItemProblem(_Model):
    """Why one item was not taken: what the single route would have answered."""

    status: int
    code: str
    detail: str


class ReportResult(_Model):
    """What became of one item: the job's status, or a problem."""

    status: JobState | None = None
    cancel_requested: bool = False
    problem: ItemProblem | None = None


class ReportBatchAnswer(_Model):
    """One result for each item, in the order of the items."""

    results: list[ReportResult]
