"""A job (one prediction): its states, priorities, and what happens when an attempt is lost."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from vyvo_dagster.domain.state import StateMachine

__all__ = [
    "DEFAULT_TIMEOUT",
    "DEFAULT_TTL",
    "JOB",
    "PREDICTION_FAILED",
    "RETRIED",
    "JobEventKind",
    "JobState",
    "Priority",
    "after_lost_attempt",
    "backoff",
    "prediction_id",
]


class JobState(StrEnum):
    """States of a job."""

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


class Priority(StrEnum):
    """Priority classes, the most urgent first."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class JobEventKind(StrEnum):
    """Events of a job's stream, as SSE names them."""

    QUEUED = "queued"
    POSITION = "position"
    LOADING = "loading"
    """A node loads the version that the job waits for."""
    DISPATCHED = "dispatched"
    STARTED = "started"
    PROGRESS = "progress"
    LOG = "log"
    ARTIFACT = "artifact"
    REQUEUED = "requeued"
    COMPLETED = "completed"


_ENDS = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED})

JOB: StateMachine[JobState] = StateMachine(
    "job",
    {
        JobState.QUEUED: frozenset(
            {JobState.DISPATCHED, JobState.CANCELED, JobState.EXPIRED, JobState.FAILED}
        ),
        # A runner may finish before its start was reported, so DISPATCHED may succeed directly.
        JobState.DISPATCHED: _ENDS | {JobState.RUNNING, JobState.QUEUED},
        JobState.RUNNING: _ENDS | {JobState.QUEUED},
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELED: frozenset(),
        JobState.EXPIRED: frozenset(),
    },
    # A person's requeue.
    reopened={
        JobState.FAILED: frozenset({JobState.QUEUED}),
        JobState.CANCELED: frozenset({JobState.QUEUED}),
        JobState.EXPIRED: frozenset({JobState.QUEUED}),
    },
)

PREDICTION_FAILED = "prediction_failed"
"""Error code of a job whose model raised; any other failure makes it a dead letter."""

DEFAULT_TIMEOUT = 3600
"""Seconds that a prediction may take where neither its job nor its version says."""

# How long a job may wait in the queue before it expires.
DEFAULT_TTL: dict[Priority, timedelta] = {
    Priority.INTERACTIVE: timedelta(seconds=600),
    Priority.STANDARD: timedelta(hours=24),
    Priority.BATCH: timedelta(hours=24),
}


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """What becomes of a job whose attempt is gone."""

    state: JobState
    error_code: str | None


def after_lost_attempt(attempt: int, handed_back: int, max_attempts: int) -> LostAttempt:
    """Requeue, or fail as `node_lost` once the attempts are used up.

    Args:
        attempt: number of the lost attempt, from 1.
        handed_back: earlier attempts that their node gave back in order; they are not charged.
        max_attempts: how many charged attempts a job has.
    """
    if attempt - handed_back >= max_attempts:
        return LostAttempt(JobState.FAILED, "node_lost")
    return LostAttempt(JobState.QUEUED, None)


RETRIED: frozenset[str] = frozenset({"runner_crashed", "runner_unreachable"})
"""Codes of failures that are the node's or the runner's rather than the job's: tried again."""
_LONGEST_BACKOFF = timedelta(seconds=60)


def backoff(charged: int) -> timedelta:
    """How long a job waits after its `charged`-th attempt (from 1) failed: 1 s, doubled, at most 60 s."""
    return min(timedelta(seconds=2.0 ** min(charged - 1, 16)), _LONGEST_BACKOFF)


def prediction_id(job_id: str, attempt: int) -> str:
    """Id of an attempt on its runner; the same attempt asked twice is one prediction there."""
    return f"{job_id}-{attempt}"
