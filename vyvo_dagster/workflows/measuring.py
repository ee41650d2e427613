"""What is measured of workflow runs: counts, and spans of runs and of their steps' attempts.

The spans' ids are derived, so that the jobs of steps are below them whichever engine started the one and
ended the other, and a turn that is taken twice tells of the same spans.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from vyvo_dagster.domain.workflow.run import RunEnd, Step
from vyvo_dagster.domain.workflow.state import RunState, StepState
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.telemetry import metrics, tracing

__all__ = ["measure", "step_trace"]


def step_trace(row: WorkflowRun, step_id: UUID, attempt: int) -> str | None:
    """What the job of a step's attempt goes on from."""
    return tracing.derived(row.traceparent, "step", step_id, attempt)


def _run_trace(row: WorkflowRun) -> str | None:
    return tracing.derived(row.traceparent, "run", row.id)


def measure(row: WorkflowRun, changed: Collection[Step], end: RunEnd | None, now: datetime) -> None:
    """Count and tell of what ended in a run's turn. Call it once the turn is committed."""
    for step in changed:
        if step.ended:
            metrics.WORKFLOW_STEPS.labels(str(step.state)).inc()
    if end is not None:
        metrics.WORKFLOW_RUNS.labels(str(end.state)).inc()
    if row.traceparent is None or not tracing.on():
        return
    for step in changed:
        if step.ended:
            ended = step.submitted_at or step.started_at, step.completed_at
            said = step.error_code if step.state is not StepState.SUCCEEDED else None
            _attempt(row, step, step.attempt, ended, said)
        elif step.state is StepState.PENDING and step.attempts:
            last = step.attempts[-1]
            times = _time(last, "submitted_at"), _time(last, "completed_at")
            _attempt(row, step, int(last["attempt"]), times, str(last["error_code"]))
    if end is not None:
        tracing.record(
            f"workflow run {row.name}", row.traceparent, row.created_at, now, itself=_run_trace(row),
            attributes={"vyvo.workflow_run_id": str(row.id), "vyvo.status": str(end.state)},
            error=None if end.state is RunState.SUCCEEDED else end.error_code or str(end.state),
        )  # fmt: skip


def _attempt(
    row: WorkflowRun, step: Step, attempt: int, times: tuple[datetime | None, datetime | None],
    error: str | None,
) -> None:  # fmt: skip
    begin, end = times
    if begin is None or end is None:
        return  # It never ran: it was skipped, or stands for its items.
    tracing.record(
        f"step {step.name}", _run_trace(row), begin, end, itself=step_trace(row, step.id, attempt),
        attributes={"vyvo.step": step.key, "vyvo.attempt": attempt}, error=error,
    )  # fmt: skip


def _time(attempt: Mapping[str, Any], name: str) -> datetime | None:
    text = attempt.get(name)
    return None if text is None else datetime.fromisoformat(text)
