"""Reports survive their way through a message, whatever is in them."""

from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.job import JobState
from vyvo_dagster.protocol.grpc import completion_pb2 as pb
from vyvo_dagster.protocol.job import (
    AttemptStatus,
    CompletionReport,
    JobError,
    ProgressReport,
    ReportedArtifact,
)
from vyvo_dagster.protocol.messages import (
    completion_of,
    completion_request,
    job_status,
    progress_of,
    progress_request,
)

ATTEMPTS = st.integers(1, 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TIMES = st.datetimes(
    datetime(1970, 1, 2),  # noqa: DTZ001 - hypothesis adds the zone
    datetime(8000, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
ARTIFACTS = st.builds(
    ReportedArtifact, type=TEXT, url=st.just("s3://bucket/key"), size_bytes=st.integers(0, 2**63 - 1),
    mime_type=TEXT, expires_at=st.none() | TIMES,
)  # fmt: skip


@given(
    st.uuids(),
    st.builds(
        ProgressReport, attempt=ATTEMPTS, fraction=st.none() | st.floats(0, 1),
        logs=st.lists(TEXT, max_size=5),
    ),
)  # fmt: skip
def test_progress(job_id: UUID, report: ProgressReport) -> None:
    wire = progress_request(job_id, report).SerializeToString()
    assert progress_of(pb.ReportProgressRequest.FromString(wire)) == (job_id, report)


@given(
    st.uuids(),
    st.builds(
        CompletionReport, attempt=ATTEMPTS, status=st.sampled_from(AttemptStatus),
        artifacts=st.lists(ARTIFACTS, max_size=3), output=JSON,
        error=st.none() | st.builds(JobError, code=TEXT, message=TEXT),
        timings=st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3),
    ),
)  # fmt: skip
def test_completion(job_id: UUID, report: CompletionReport) -> None:
    wire = completion_request(job_id, report).SerializeToString()
    assert completion_of(pb.CompleteJobRequest.FromString(wire)) == (job_id, report)


def test_the_enums_name_every_state() -> None:
    assert {job_status(s) for s in JobState} == set(pb.JobStatus.keys()) - {
        "JOB_STATUS_UNSPECIFIED"
    }
    assert len(AttemptStatus) == len(pb.AttemptStatus.keys()) - 1
