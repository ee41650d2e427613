"""What workflows look like over REST."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from api.fields import Body
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.definition import Definition, parse
from vyvo_dagster.domain.workflow.problem import Problem
from vyvo_dagster.domain.workflow.state import TriggerKind
from vyvo_dagster.store.workflow_records import Workflow, WorkflowTrigger, WorkflowVersion

__all__ = [
    "DOCUMENT",
    "PausedBody",
    "ProblemView",
    "Pushed",
    "RunRequest",
    "Validation",
    "WorkflowDetail",
    "WorkflowVersionView",
    "WorkflowView",
    "graph_of",
    "problem_views",
    "trigger_view",
    "version_view",
    "workflow_view",
]

DOCUMENT: dict[str, Any] = {
    "name": "contact-sheet",
    "inputs": {"seeds": {"type": "array", "items": {"type": "integer"}, "default": [1, 2]}},
    "steps": [
        {
            "name": "make",
            "model": "vyvo/digits",
            "for_each": "${{ inputs.seeds }}",
            "limit": 4,
            "input": {"seed": "${{ item }}"},
        }
    ],
    "outputs": {"images": "${{ steps.make.artifacts }}"},
}
"""An example of a definition."""


class ProblemView(BaseModel):
    """One fault of a definition."""

    step: str | None = Field(description="Name of the step that it is in.")
    path: str = Field(examples=["$.steps[1].input.seed"])
    code: str = Field(examples=["unknown_step"])
    message: str


class GraphStep(BaseModel):
    """A step, as a node of the graph."""

    name: str
    what: str = Field(description="Its model, operation or image.", examples=["vyvo/digits@2"])
    needs: list[str]
    mapped: bool = Field(description="Whether it is done for each item of a list.")
    conditional: bool


class Validation(BaseModel):
    """What is wrong with a definition; its graph, where nothing is."""

    valid: bool
    problems: list[ProblemView]
    steps: list[GraphStep] = Field(description="In an order that satisfies all needs.")


class WorkflowTriggerView(BaseModel):
    """What starts runs by itself."""

    name: str
    kind: TriggerKind
    spec: dict[str, Any]
    inputs: dict[str, Any]
    enabled: bool
    next_at: datetime | None = Field(description="Of cron.")
    last_fired_at: datetime | None


class WorkflowView(BaseModel):
    """A workflow."""

    id: UUID
    tenant: str
    name: str
    description: str
    latest_version: int
    paused: bool = Field(description="Its triggers start nothing.")
    created_at: datetime
    updated_at: datetime


class WorkflowDetail(WorkflowView):
    """A workflow with its latest definition and its triggers."""

    definition: dict[str, Any]
    steps: list[GraphStep]
    triggers: list[WorkflowTriggerView]


class WorkflowVersionView(BaseModel):
    """A version of a workflow; it never changes."""

    id: UUID
    workflow: str
    version: int
    sha256: str = Field(description="Of the definition's content.")
    created_by: str = Field(description="Prefix of the key.")
    created_at: datetime
    definition: dict[str, Any]
    steps: list[GraphStep] = Field(description="In an order that satisfies all needs.")


class Pushed(BaseModel):
    """The version that a definition is."""

    name: str
    version: int
    version_id: UUID
    sha256: str
    created: bool = Field(description="False where the latest version has this content.")


class PausedBody(Body):
    """Let its triggers rest, or fire again."""

    paused: bool


class RunRequest(Body):
    """A run to start."""

    inputs: dict[str, Any] = Field(default_factory=dict, examples=[{"seeds": [1, 2, 3]}])
    version: int | None = Field(None, ge=1, description="The latest unless it is given.")
    priority: Priority | None = Field(
        None, description="Of all its jobs; else as the definition says."
    )


def problem_views(problems: Iterable[Problem]) -> list[ProblemView]:
    """Faults as they are shown."""
    return [ProblemView.model_validate(p, from_attributes=True) for p in problems]


def graph_of(definition: Definition) -> list[GraphStep]:
    """A definition's steps, each after all that it needs."""
    return [
        GraphStep(
            name=step.name, what=step.what, needs=list(step.needs), mapped=step.mapped,
            conditional=step.when is not None,
        )
        for step in definition.order
    ]  # fmt: skip


def workflow_view(workflow: Workflow) -> WorkflowView:
    """A workflow's row as it is shown."""
    return WorkflowView.model_validate(workflow, from_attributes=True)


def trigger_view(trigger: WorkflowTrigger) -> WorkflowTriggerView:
    """A trigger's row as it is shown."""
    return WorkflowTriggerView.model_validate(trigger, from_attributes=True)


def version_view(version: WorkflowVersion) -> WorkflowVersionView:
    """A version's row as it is shown."""
    return WorkflowVersionView(
        id=version.id, workflow=version.name, version=version.version, sha256=version.sha256,
        created_by=version.created_by, created_at=version.created_at,
        definition=dict(version.definition), steps=graph_of(parse(version.definition)),
    )  # fmt: skip
