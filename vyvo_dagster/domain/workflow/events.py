"""Events of a run's stream: the same data over SSE, and for who follows all events."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from vyvo_dagster.domain.artifact import artifacts_in
from vyvo_dagster.domain.workflow.run import Step
from vyvo_dagster.domain.workflow.state import RunState, StepState

__all__ = ["RunEventKind", "run_event", "step_event"]


class RunEventKind(StrEnum):
    """Events of a run, as SSE names them. COMPLETED is the last."""

    QUEUED = "run_queued"
    STARTED = "run_started"
    STEP = "step"
    """A step's row has changed."""
    COMPLETED = "run_completed"


def run_event(
    *, workflow: str, version: int, state: RunState, outputs: Mapping[str, Any] | None = None,
    error_code: str | None = None, error_message: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Data of QUEUED, STARTED and COMPLETED."""
    return {
        "workflow": workflow, "version": version, "status": str(state), "outputs": outputs,
        "error": _error(error_code, error_message),
    }  # fmt: skip


def step_event(step: Step) -> dict[str, Any]:
    """Data of STEP. Artifacts are listed once it has succeeded."""
    done = step.state is StepState.SUCCEEDED
    return {
        "key": step.key, "name": step.name, "map_index": step.map_index,
        "status": str(step.state), "attempt": step.attempt,
        "job_id": None if step.job_id is None else str(step.job_id),
        "host": step.host, "waiting": step.waiting,
        "error": _error(step.error_code, step.error_message),
        "retry_at": None if step.retry_at is None else step.retry_at.isoformat(),
        "submitted_at": None if step.submitted_at is None else step.submitted_at.isoformat(),
        "started_at": None if step.started_at is None else step.started_at.isoformat(),
        "completed_at": None if step.completed_at is None else step.completed_at.isoformat(),
        "artifacts": [dict(a) for a in artifacts_in(step.output)] if done else [],
    }  # fmt: skip


def _error(code: str | None, message: str | None) -> dict[str, str] | None:
    return None if code is None else {"code": code, "message": message or ""}
