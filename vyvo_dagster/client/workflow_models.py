"""What the api answers about workflows, as typed, frozen values."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.state import RUN, RunState, StepState, TriggerKind

__all__ = [
    "GraphStep",
    "Pushed",
    "Step",
    "Validation",
    "Workflow",
    "WorkflowRun",
    "WorkflowSummary",
    "WorkflowVersion",
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Fault(_Answer):
    """One fault of a definition."""

    step: str | None
    path: str
    code: str
    message: str

    def __str__(self) -> str:
        where = self.path if self.step is None else f"step {self.step}, {self.path}"
        return f"{where}: {self.message}"


class GraphStep(_Answer):
    """A step, as a node of the graph."""

    name: str
    what: str
    needs: tuple[str, ...]
    mapped: bool
    conditional: bool


class Validation(_Answer):
    """What is wrong with a definition; its steps, each after all that it needs, where nothing is."""

    valid: bool
    problems: tuple[Fault, ...]
    steps: tuple[GraphStep, ...]


class Pushed(_Answer):
    """The version that a definition is; `created` where it is new."""

    name: str
    version: int
    version_id: UUID
    sha256: str
    created: bool


class Trigger(_Answer):
    """What starts runs by itself."""

    name: str
    kind: TriggerKind
    spec: Mapping[str, Any]
    inputs: Mapping[str, Any]
    enabled: bool
    next_at: datetime | None
    last_fired_at: datetime | None


class WorkflowSummary(_Answer):
    """A workflow, as a list shows it."""

    id: UUID
    tenant: str
    name: str
    description: str
    latest_version: int
    paused: bool
    created_at: datetime
    updated_at: datetime


class Workflow(WorkflowSummary):
    """A workflow with its latest definition, its graph and its triggers."""

    definition: Mapping[str, Any]
    steps: tuple[GraphStep, ...]
    triggers: tuple[Trigger, ...]


class WorkflowVersion(_Answer):
    """A version of a workflow."""

    id: UUID
    workflow: str
    version: int
    sha256: str
    created_by: str
    created_at: datetime
    definition: Mapping[str, Any]
    steps: tuple[GraphStep, ...]


class RunError(_Answer):
    """Why a run or a step has failed."""

    code: str
    message: str


class StepArtifact(_Answer):
    """An artifact of a step; size in bytes."""

    type: str
    url: str
    presigned_url: str | None
    size_bytes: int
    mime_type: str
    expires_at: datetime | None


class Timing(_Answer):
    """Seconds: from the run's start to its submission, from there to its start, from there to its end."""

    offset: float
    waited: float
    ran: float


class Step(_Answer):
    """A step of a run, or one item of a mapped one."""

    key: str
    name: str
    map_index: int | None
    status: StepState
    attempt: int
    job_id: UUID | None
    host: str | None = None
    waiting: str | None = None
    input: Any
    output: Any
    error: RunError | None
    artifacts: tuple[StepArtifact, ...]
    submitted_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    timing: Timing | None


class WorkflowRun(_Answer):
    """A run. `steps`, `inputs` and `outputs` are left out by lists and by what starts a run."""

    run_id: UUID
    workflow: str
    version: int
    tenant: str
    status: RunState
    trigger: TriggerKind
    trigger_key: str | None
    priority: Priority | None
    cancel_requested: bool
    retry_of: UUID | None
    error: RunError | None
    dagster_run_id: str | None
    dagster_url: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    seconds: float | None
    inputs: Mapping[str, Any] | None = None
    outputs: Mapping[str, Any] | None = None
    steps: tuple[Step, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.status in RUN.terminal
