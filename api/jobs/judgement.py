"""One batch of reports against the rows that it names: what each means, and what is written.

All rows are locked before the first report is judged, so that what is decided from them holds
until the transaction ends. Nothing is written of a report that is stale.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid_utils.compat import uuid7

from api.fields import mended
from vyvo_dagster.dispatch.requeue import requeue_lost
from vyvo_dagster.domain.job import JOB, RETRIED, JobEventKind, JobState
from vyvo_dagster.errors import InvalidReport, NotFound, StaleAttempt
from vyvo_dagster.protocol.job import (
    AttemptStatus,
    CompletionReport,
    JobError,
    MalformedReport,
    ProgressReport,
    ReportedArtifact,
    ReportItem,
)
from vyvo_dagster.store.attempts import Gone
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.jobs import IN_FLIGHT
from vyvo_dagster.store.records import Job, JobAttempt
from vyvo_dagster.store.reports import Advance, End, ReportedJob

__all__ = ["EndedJob", "IsOutput", "Judgement", "Told"]

_MESSAGE_CHARS: Final = 8000
_Key = tuple[UUID, int]
IsOutput = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that ended, and how many seconds its phases took."""

    model_id: str
    state: JobState
    seconds: Mapping[str, float]
    traceparent: str | None = None


@dataclass(slots=True)
class Told:
    """What is to be told once the transaction is committed."""

    events: list[tuple[UUID, str, dict[str, Any]]] = field(
        default_factory=list[tuple[UUID, str, dict[str, Any]]]
    )
    requeued: list[Job] = field(default_factory=list[Job])
    ended: list[EndedJob] = field(default_factory=list[EndedJob])


@dataclass(slots=True)
class _Running:
    """What is still to be written of an attempt under way."""

    attempt: int
    started: bool = False
    fraction: float | None = None


class Judgement:
    """Judges one batch of one node, in one transaction. Made by `begin`."""

    def __init__(
        self, store: Store, node_id: UUID, is_output: IsOutput,
        jobs: Mapping[UUID, ReportedJob],
    ) -> None:  # fmt: skip
        self.told = Told()
        self._store = store
        self._node_id = node_id
        self._is_output = is_output
        self._jobs = jobs
        self._earlier: Mapping[_Key, JobAttempt] = {}
        self._outcomes: dict[_Key, tuple[str, str | None]] = {}
        self._running: dict[UUID, _Running] = {}
        self._ends: list[tuple[ReportedJob, End]] = []
        self._traces: dict[UUID, str] = {}
        self._artifacts: list[dict[str, Any]] = []

    @classmethod
    async def begin(
        cls, store: Store, node_id: UUID, reports: Sequence[ReportItem | MalformedReport],
        is_output: IsOutput,
    ) -> "Judgement":  # fmt: skip
        """Lock what the reports name, and read what tells repeated ends from stale ones."""
        named = {r.job_id for r in reports if r.job_id is not None}
        made = cls(store, node_id, is_output, await store.reports.lock(sorted(named)))
        ends = {key for r in reports if (key := _end_of(r)) is not None}
        past = [
            (job_id, attempt)
            for job_id, attempt in ends
            if (job := made._jobs.get(job_id)) is not None and not made._holds(job, attempt)
        ]
        made._earlier = await store.reports.attempts(past)
        return made

    async def judge(self, report: ReportItem | MalformedReport) -> tuple[JobState, bool]:
        """Judge the next report: its job's state now, and whether its cancel was asked for.

        Raises:
            StaleAttempt: it is not of the job's current attempt on this node.
            NotFound: no such job.
            InvalidReport: it cannot be used; the attempt that it was to end has failed.
        """
        if isinstance(report, MalformedReport):
            if report.ends and report.job_id is not None and report.attempt is not None:
                self._refuse(report.job_id, report.attempt, report.detail)
            raise InvalidReport(report.detail)
        if report.completion is None:
            assert report.progress is not None
            return self._progress(report.job_id, report.progress)
        if foreign := self._foreign(report.completion.artifacts):
            self._refuse(report.job_id, report.completion.attempt, foreign)
            raise InvalidReport(foreign)
        return await self._complete(report.job_id, report.completion)

    async def write(self) -> None:
        """Write what was judged, and complete what is to be told."""
        reports = self._store.reports
        await reports.advance(
            self._node_id,
            [Advance(job_id, r.attempt, r.fraction) for job_id, r in self._running.items()],
        )
        now = await reports.end(self._node_id, [end for _, end in self._ends])
        await self._store.artifacts.add_many(self._artifacts)
        if now is not None:
            self.told.ended += [
                _measured(job, end.state, now, self._traces.get(job.id)) for job, end in self._ends
            ]

    def _progress(self, job_id: UUID, report: ProgressReport) -> tuple[JobState, bool]:
        job = self._current(job_id, report.attempt)
        events, attempt = self.told.events, report.attempt
        started = job.state is JobState.DISPATCHED
        if started:
            job.state = JobState.RUNNING
            data = {"status": str(job.state), "attempt": attempt, "node_id": str(self._node_id)}
            events.append((job_id, JobEventKind.STARTED, data))
        if started or report.fraction is not None:
            running = self._running.setdefault(job_id, _Running(attempt))
            running.started = running.started or started
            if report.fraction is not None:
                running.fraction = report.fraction
        if report.fraction is not None:
            data = {"fraction": report.fraction, "attempt": attempt}
            events.append((job_id, JobEventKind.PROGRESS, data))
        if report.logs:
            data = {"lines": mended(report.logs), "attempt": attempt}
            events.append((job_id, JobEventKind.LOG, data))
        return job.state, job.cancel_requested_at is not None

    async def _complete(self, job_id: UUID, report: CompletionReport) -> tuple[JobState, bool]:
        job = self._job(job_id)
        if not self._holds(job, report.attempt):
            return self._repeated(job, report.attempt, str(report.status)), False
        if report.status is AttemptStatus.HANDED_BACK:
            return await self._requeue(job, Gone(str(report.status)), charged=False), False
        if report.status is AttemptStatus.FAILED and report.error and report.error.code in RETRIED:
            message = str(mended(report.error.message))
            gone = Gone(str(report.status), report.error.code, message)
            return await self._requeue(job, gone, charged=True), False
        output = mended(report.output)
        self._end(job, JobState(report.status.value), report, output)
        return job.state, False

    async def _requeue(self, job: ReportedJob, gone: Gone, *, charged: bool) -> JobState:
        """Have the job tried again, or ended where its attempts are used up."""
        self._running.pop(job.id, None)
        row = await self._store.jobs.get(job.id, None)
        assert row is not None
        changed = await requeue_lost(self._store, row, gone, charged=charged)
        assert changed is not None
        job.state = changed.state
        self._outcomes[job.id, job.attempt] = gone.outcome, gone.code
        self.told.requeued.append(changed)
        if changed.completed_at is not None:
            self.told.ended.append(_measured(job, job.state, changed.completed_at))
        return job.state

    def _refuse(self, job_id: UUID, attempt: int, detail: str) -> None:
        """End an attempt whose end cannot be taken as it was reported; once only."""
        job = self._job(job_id)
        code = InvalidReport.code
        if not self._holds(job, attempt):
            self._repeated(job, attempt, str(JobState.FAILED), code)
            return
        said = f"the report of the attempt's end cannot be used: {detail}"[:_MESSAGE_CHARS]
        report = CompletionReport(
            attempt=attempt, status=AttemptStatus.FAILED, error=JobError(code=code, message=said)
        )
        self._end(job, JobState.FAILED, report, None)

    def _end(
        self, job: ReportedJob, state: JobState, report: CompletionReport, output: Any
    ) -> None:
        assert job.state in JOB.before(state)
        job.state = state
        code = None if report.error is None else str(mended(report.error.code))
        message = None if report.error is None else str(mended(report.error.message))
        timings = {k: v for k, v in mended(report.timings).items() if v is not None}
        running = self._running.pop(job.id, _Running(report.attempt))
        end = End(
            job.id, report.attempt, state, running.started, running.fraction,
            None if output is None else json.dumps(output), code, message, json.dumps(timings),
        )  # fmt: skip
        self._ends.append((job, end))
        if report.traceparent is not None:
            self._traces[job.id] = report.traceparent
        self._outcomes[job.id, report.attempt] = str(state), code
        rows = [_row(job, position, a) for position, a in enumerate(report.artifacts)]
        self._artifacts += rows
        shapes = [_shape(row) for row in rows]
        self.told.events += [(job.id, JobEventKind.ARTIFACT, shape) for shape in shapes]
        data = {
            "job_id": str(job.id), "status": str(state), "attempt": report.attempt,
            "output": output, "artifacts": shapes,
            "error": None if code is None else {"code": code, "message": message or ""},
            "timings": timings,
        }  # fmt: skip
        self.told.events.append((job.id, JobEventKind.COMPLETED, data))

    def _repeated(
        self, job: ReportedJob, attempt: int, outcome: str, code: str | None = None
    ) -> JobState:
        """The state to answer to an end that was taken before, else StaleAttempt."""
        taken = self._outcomes.get((job.id, attempt))
        kept = self._earlier.get((job.id, attempt))
        if taken is None and kept is not None and kept.node_id == self._node_id:
            taken = kept.outcome or "", kept.error_code
        if taken is None or taken[0] != outcome or code not in {None, taken[1]}:
            raise _stale(attempt)
        current = job.attempt == attempt and job.state not in IN_FLIGHT
        return job.state if current else JobState.QUEUED

    def _job(self, job_id: UUID) -> ReportedJob:
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound("no such job")
        return job

    def _current(self, job_id: UUID, attempt: int) -> ReportedJob:
        job = self._job(job_id)
        if not self._holds(job, attempt):
            raise _stale(attempt)
        return job

    def _holds(self, job: ReportedJob, attempt: int) -> bool:
        """Whether this is the job's current attempt, under way on this node."""
        return job.attempt == attempt and job.node_id == self._node_id and job.state in IN_FLIGHT

    def _foreign(self, artifacts: Sequence[ReportedArtifact]) -> str | None:
        """What is wrong with an artifact that is not where outputs are."""
        for artifact in artifacts:
            if not self._is_output(artifact.url):
                return f"artifact {artifact.url[:200]} is in none of the buckets of outputs"
        return None


def _end_of(report: ReportItem | MalformedReport) -> _Key | None:
    """The attempt that a report is to end."""
    if isinstance(report, ReportItem):
        return None if report.completion is None else (report.job_id, report.completion.attempt)
    if report.job_id is None or report.attempt is None or not report.ends:
        return None
    return report.job_id, report.attempt


def _stale(attempt: int) -> StaleAttempt:
    return StaleAttempt(f"attempt {attempt} is not the current one of this job on this node")


def _row(job: ReportedJob, position: int, artifact: ReportedArtifact) -> dict[str, Any]:
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


def _measured(
    job: ReportedJob, state: JobState, ended_at: datetime, traceparent: str | None = None
) -> EndedJob:
    if job.dispatched_at is None:
        return EndedJob(job.model_id, state, {}, traceparent)
    spans = {
        "queue": job.dispatched_at - job.created_at,
        "run": ended_at - job.dispatched_at,
        "total": ended_at - job.created_at,
    }
    seconds = {k: span.total_seconds() for k, span in spans.items()}
    return EndedJob(job.model_id, state, seconds, traceparent)
