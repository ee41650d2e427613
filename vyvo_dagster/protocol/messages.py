"""Reports of attempts as protobuf messages and back: what both ends of gRPC share."""

import json
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from vyvo_dagster.domain.job import JobState
from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.protocol.grpc import completion_pb2 as pb
from vyvo_dagster.protocol.job import (
    BATCH_ITEMS,
    AttemptStatus,
    CompletionReport,
    ItemProblem,
    MalformedReport,
    ProgressReport,
    ReportedArtifact,
    ReportItem,
    ReportResult,
)

__all__ = [
    "batch_items",
    "batch_request",
    "batch_results",
    "completion_of",
    "completion_request",
    "job_status",
    "progress_of",
    "progress_request",
]

_JOB: Final = "JOB_STATUS_"
_ATTEMPT: Final = "ATTEMPT_STATUS_"


def progress_request(job_id: UUID, report: ProgressReport) -> pb.ReportProgressRequest:
    """The message of a progress report."""
    return pb.ReportProgressRequest(
        job_id=str(job_id), attempt=report.attempt, fraction=report.fraction, logs=report.logs
    )


def progress_of(message: pb.ReportProgressRequest) -> tuple[UUID, ProgressReport]:
    """The job and the report of a message.

    Raises:
        InvalidInput: the job's id is no UUID.
        pydantic.ValidationError: a member is out of its bounds.
    """
    fraction = message.fraction if message.HasField("fraction") else None
    report = {"attempt": message.attempt, "fraction": fraction, "logs": list(message.logs)}
    return _uuid(message.job_id), ProgressReport.model_validate(report)


def completion_request(job_id: UUID, report: CompletionReport) -> pb.CompleteJobRequest:
    """The message of an attempt's end.

    Raises:
        InvalidInput: a number has more bits than its field.
    """
    error = report.error
    try:
        return pb.CompleteJobRequest(
            job_id=str(job_id),
            attempt=report.attempt,
            status=_ATTEMPT + report.status.name,
            artifacts=[_artifact_message(a) for a in report.artifacts],
            output_json="" if report.output is None else json.dumps(report.output),
            error=None if error is None else pb.JobError(code=error.code, message=error.message),
            timings=report.timings,
            traceparent=report.traceparent,
        )
    except ValueError as wrong:
        raise InvalidInput(f"the report cannot be sent: {wrong}") from wrong


def completion_of(message: pb.CompleteJobRequest) -> tuple[UUID, CompletionReport]:
    """The job and the report of a message.

    Raises:
        InvalidInput: the job's id is no UUID, the status is none, the output is no JSON.
        pydantic.ValidationError: a member is out of its bounds.
    """
    report: dict[str, Any] = {
        "attempt": message.attempt,
        "status": _attempt_status(message.status),
        "artifacts": [_artifact(a) for a in message.artifacts],
        "output": _output(message.output_json),
        "timings": dict(message.timings),
    }
    if message.HasField("traceparent"):
        report["traceparent"] = message.traceparent
    if message.HasField("error"):
        report["error"] = {"code": message.error.code, "message": message.error.message}
    return _uuid(message.job_id), CompletionReport.model_validate(report)


def batch_request(items: Sequence[ReportItem]) -> pb.ReportBatchRequest:
    """The message of many reports.

    Raises:
        InvalidInput: a number has more bits than its field.
    """
    return pb.ReportBatchRequest(items=[_item_message(item) for item in items])


def batch_items(message: pb.ReportBatchRequest) -> list[ReportItem | MalformedReport]:
    """The reports of a message; one that cannot be used must not refuse the others.

    Raises:
        InvalidInput: there is none, or there are too many.
    """
    if not 1 <= len(message.items) <= BATCH_ITEMS:
        raise InvalidInput(f"items: there must be 1 to {BATCH_ITEMS}")
    return [_item(item) for item in message.items]


def batch_results(message: pb.ReportBatchResponse) -> list[ReportResult]:
    """What became of each report."""
    return [_result(result) for result in message.results]


def job_status(state: JobState) -> str:
    """A job's state as the name that the message's enum has for it."""
    return _JOB + state.name


def _attempt_status(number: int) -> AttemptStatus:
    # A number that this version does not know is kept by protobuf as it is.
    name = pb.AttemptStatus.DESCRIPTOR.values_by_number.get(number)
    key = "" if name is None else name.name.removeprefix(_ATTEMPT)
    if key not in AttemptStatus.__members__:
        raise InvalidInput("status: is none of " + ", ".join(AttemptStatus.__members__))
    return AttemptStatus[key]


def _output(text: str) -> Any:
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("output_json: is no JSON text") from error


def _artifact_message(artifact: ReportedArtifact) -> pb.Artifact:
    expires_at = None
    if artifact.expires_at is not None:
        expires_at = Timestamp()
        expires_at.FromDatetime(artifact.expires_at)
    return pb.Artifact(
        type=artifact.type,
        url=artifact.url,
        size_bytes=artifact.size_bytes,
        mime_type=artifact.mime_type,
        expires_at=expires_at,
    )


def _artifact(message: pb.Artifact) -> dict[str, Any]:
    expires_at = None
    if message.HasField("expires_at"):
        try:
            expires_at = message.expires_at.ToDatetime(UTC)
        except (ValueError, OverflowError) as error:
            raise InvalidInput("artifacts.expires_at: is no date") from error
    return {
        "type": message.type, "url": message.url, "size_bytes": message.size_bytes,
        "mime_type": message.mime_type, "expires_at": expires_at,
    }  # fmt: skip


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidInput("job_id: is no UUID") from error


def _item_message(item: ReportItem) -> pb.ReportItem:
    if item.completion is not None:
        return pb.ReportItem(completion=completion_request(item.job_id, item.completion))
    assert item.progress is not None
    return pb.ReportItem(progress=progress_request(item.job_id, item.progress))


def _item(message: pb.ReportItem) -> ReportItem | MalformedReport:
    kind = message.WhichOneof("report")
    if kind is None:
        return MalformedReport(detail="an item is either progress or completion")
    given = message.progress if kind == "progress" else message.completion
    try:
        if kind == "progress":
            job_id, progress = progress_of(message.progress)
            return ReportItem(job_id=job_id, progress=progress)
        job_id, completion = completion_of(message.completion)
        return ReportItem(job_id=job_id, completion=completion)
    except InvalidInput as error:
        detail = error.detail
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    try:
        return MalformedReport(
            job_id=_uuid(given.job_id), attempt=given.attempt, ends=kind == "completion",
            detail=detail,
        )  # fmt: skip
    except (InvalidInput, ValidationError):
        return MalformedReport(detail=detail)


def _result(message: pb.ReportResult) -> ReportResult:
    if message.HasField("problem"):
        problem = message.problem
        return ReportResult(
            problem=ItemProblem(status=problem.status, code=problem.code, detail=problem.detail)
        )
    name = pb.JobStatus.Name(message.status).removeprefix(_JOB)
    return ReportResult(status=JobState[name], cancel_requested=message.cancel_requested)
