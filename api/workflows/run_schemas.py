"""What runs of workflows look like over REST."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from vyvo_dagster.domain.artifact import artifacts_in
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.run import Step
from vyvo_dagster.domain.workflow.state import RunState, StepState, TriggerKind
from vyvo_dagster.store.workflow_records import WorkflowRun

__all__ = ["RunDetail", "RunView", "run_detail", "run_view"]

Sign = Callable[[str], str | None]


class RunErrorView(BaseModel):
    """Why something has failed."""

    code: str = Field(examples=["step_failed"])
    message: str


class RunView(BaseModel):
    """A run of a workflow."""

    run_id: UUID
    workflow: str
    version: int
    tenant: str
    status: RunState
    trigger: TriggerKind
    trigger_key: str | None
    priority: Priority | None
    cancel_requested: bool
    retry_of: UUID | None = Field(description="The run that this one retries.")
    error: RunErrorView | None
    dagster_run_id: str | None
    dagster_url: str | None = Field(description="The run in Dagster's UI.")
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    seconds: float | None = Field(description="From its start to its end.")


class StepArtifact(BaseModel):
    """An artifact that a step has made."""

    type: str
    url: str
    presigned_url: str | None
    size_bytes: int
    mime_type: str
    expires_at: str | None


class StepTiming(BaseModel):
    """A bar of a Gantt chart: seconds, `offset` from the run's start."""

    offset: float = Field(description="When it was submitted.")
    waited: float = Field(description="From submission to its start.")
    ran: float = Field(description="From its start to its end, or until now.")


class StepView(BaseModel):
    """A step, or one item of a mapped one."""

    key: str = Field(examples=["read[3]"])
    name: str
    map_index: int | None
    status: StepState
    attempt: int
    job_id: UUID | None
    host: str | None = Field(description="Of a container: the node that it runs on.")
    waiting: str | None = Field(description="Of a container: why it has not started yet.")
    input: Any
    output: Any
    error: RunErrorView | None
    retry_at: datetime | None
    attempts: list[dict[str, Any]] = Field(description="Earlier attempts and why they failed.")
    artifacts: list[StepArtifact]
    submitted_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    timing: StepTiming | None = Field(description="Null before it is submitted.")


class RunDetail(RunView):
    """A run with its inputs, outputs and steps."""

    inputs: dict[str, Any]
    outputs: dict[str, Any] | None
    steps: list[StepView]


def run_view(run: WorkflowRun, dagster_url: str | None) -> RunView:
    """A run's row as it is shown."""
    link = None
    if dagster_url is not None and run.dagster_run_id is not None:
        link = f"{dagster_url.rstrip('/')}/runs/{run.dagster_run_id}"
    return RunView(
        run_id=run.id, workflow=run.name, version=run.version, tenant=run.tenant,
        status=run.state, trigger=run.trigger_kind, trigger_key=run.trigger_key,
        priority=run.priority, cancel_requested=run.cancel_requested_at is not None,
        retry_of=run.retry_of, error=_error(run.error_code, run.error_message),
        dagster_run_id=run.dagster_run_id, dagster_url=link, created_at=run.created_at,
        started_at=run.started_at, completed_at=run.completed_at,
        seconds=_seconds(run.started_at, run.completed_at),
    )  # fmt: skip


def run_detail(
    run: WorkflowRun, steps: Iterable[Step], dagster_url: str | None, sign: Sign, now: datetime
) -> RunDetail:
    """A run with its steps, in the order that they were submitted; those that wait come last."""
    end = run.completed_at or now
    ordered = sorted(
        steps, key=lambda s: (s.submitted_at is None, s.submitted_at or s.created_at, s.id)
    )
    return RunDetail(
        **run_view(run, dagster_url).model_dump(), inputs=dict(run.inputs),
        outputs=None if run.outputs is None else dict(run.outputs),
        steps=[_step(step, run, end, sign) for step in ordered],
    )  # fmt: skip


def _step(step: Step, run: WorkflowRun, end: datetime, sign: Sign) -> StepView:
    return StepView(
        key=step.key, name=step.name, map_index=step.map_index, status=step.state,
        attempt=step.attempt, job_id=step.job_id, host=step.host, waiting=step.waiting, input=step.input, output=step.output,
        error=_error(step.error_code, step.error_message), retry_at=step.retry_at,
        attempts=[dict(a) for a in step.attempts],
        artifacts=[
            StepArtifact(**a, presigned_url=sign(a["url"])) for a in artifacts_in(step.output)
        ]
        if step.map_index is not None or not _is_map(step)
        else [],
        submitted_at=step.submitted_at, started_at=step.started_at,
        completed_at=step.completed_at, timing=_timing(step, run, end),
    )  # fmt: skip


def _is_map(step: Step) -> bool:
    """Whether it is a mapped step itself, whose artifacts its items show."""
    return step.map_index is None and step.job_id is None and isinstance(step.input, dict) and (
        set(step.input) == {"items"}
    )  # fmt: skip


def _timing(step: Step, run: WorkflowRun, end: datetime) -> StepTiming | None:
    if step.submitted_at is None or run.started_at is None:
        return None
    started = step.started_at or step.completed_at or end
    return StepTiming(
        offset=_seconds(run.started_at, step.submitted_at) or 0.0,
        waited=_seconds(step.submitted_at, started) or 0.0,
        ran=_seconds(started, step.completed_at or end) or 0.0,
    )


def _seconds(since: datetime | None, until: datetime | None) -> float | None:
    if since is None or until is None:
        return None
    return round(max((until - since).total_seconds(), 0.0), 6)


def _error(code: str | None, message: str | None) -> RunErrorView | None:
    return None if code is None else RunErrorView(code=code, message=message or "")
