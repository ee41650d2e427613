"""A workflow run and its steps: states, what starts a run, and why one fails."""

from enum import StrEnum
from typing import Final

from vyvo_dagster.domain.job import JobState
from vyvo_dagster.domain.state import StateMachine

__all__ = [
    "ACTIVE",
    "RUN",
    "STEP",
    "RunErrorCode",
    "RunState",
    "StepErrorCode",
    "StepState",
    "TriggerKind",
    "step_state_of",
]


class RunState(StrEnum):
    """States of a workflow run."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class StepState(StrEnum):
    """States of a step; from SUBMITTED on they are those of its job."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    SKIPPED = "skipped"


class TriggerKind(StrEnum):
    """What starts a run."""

    API = "api"
    STREAM = "stream"
    CRON = "cron"
    ARTIFACT = "artifact"
    MODEL_VERSION = "model_version"
    RETRY = "retry"
    DAGSTER = "dagster"
    """The launchpad of Dagster's UI."""


class StepErrorCode(StrEnum):
    """Why a step has failed or was skipped, where it is not its job's own code."""

    CONDITION_FALSE = "condition_false"
    """Skipped: its `when` was false. What needs it goes on."""
    UPSTREAM_FAILED = "upstream_failed"
    """Skipped: a step that it needs has failed."""
    EXPRESSION_FAILED = "expression_failed"
    """One of its expressions has no value."""
    OPERATION_FAILED = "operation_failed"
    """Its built-in operation refused its input, or failed."""
    TOO_MANY_ITEMS = "too_many_items"
    """Its `for_each` has more items than it takes."""
    ITEMS_FAILED = "items_failed"
    """Some of its mapped steps have failed."""
    RUN_CANCELED = "run_canceled"
    RUN_TIMEOUT = "run_timeout"


class RunErrorCode(StrEnum):
    """Why a run has not succeeded."""

    STEP_FAILED = "step_failed"
    OUTPUTS_FAILED = "outputs_failed"
    CANCELED = "canceled"
    TIMEOUT = "run_timeout"


RUN: Final[StateMachine[RunState]] = StateMachine(
    "workflow run",
    {
        RunState.QUEUED: frozenset({RunState.RUNNING, RunState.FAILED, RunState.CANCELED}),
        RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELED}),
        RunState.SUCCEEDED: frozenset(),
        RunState.FAILED: frozenset(),
        RunState.CANCELED: frozenset(),
    },
)

_ENDS: Final = frozenset(
    {StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELED, StepState.EXPIRED}
)
# An attempt that failed is tried again from PENDING.
_AGAIN: Final = _ENDS | {StepState.PENDING}

STEP: Final[StateMachine[StepState]] = StateMachine(
    "step",
    {
        # A built-in operation succeeds or runs at once, and a mapped step runs while its items do.
        StepState.PENDING: _ENDS | {StepState.SUBMITTED, StepState.RUNNING, StepState.SKIPPED},
        StepState.SUBMITTED: _AGAIN | {StepState.DISPATCHED, StepState.RUNNING},
        # A job whose attempt is lost waits again.
        StepState.DISPATCHED: _AGAIN | {StepState.RUNNING, StepState.SUBMITTED},
        StepState.RUNNING: _AGAIN | {StepState.SUBMITTED, StepState.DISPATCHED},
        StepState.SUCCEEDED: frozenset(),
        StepState.FAILED: frozenset(),
        StepState.CANCELED: frozenset(),
        StepState.EXPIRED: frozenset(),
        StepState.SKIPPED: frozenset(),
    },
)

ACTIVE: Final = frozenset({StepState.SUBMITTED, StepState.DISPATCHED, StepState.RUNNING})
"""States of a step whose attempt is under way."""


def step_state_of(job: JobState) -> StepState:
    """The state of a step whose job is in state `job`."""
    return StepState.SUBMITTED if job is JobState.QUEUED else StepState(job.value)
