"""Rows of workflows, their versions, runs and triggers as typed, frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.state import RunState, TriggerKind

__all__ = ["Workflow", "WorkflowRun", "WorkflowTrigger", "WorkflowVersion"]


@dataclass(frozen=True, slots=True)
class Workflow:
    """A row of workflows."""

    id: UUID
    tenant: str
    name: str
    description: str
    latest_version: int
    paused: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class WorkflowVersion:
    """A row of workflow_versions, with its workflow's tenant and name. `definition` is the document."""

    id: UUID
    workflow_id: UUID
    tenant: str
    name: str
    version: int
    definition: Mapping[str, Any]
    sha256: str
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class WorkflowRun:
    """A row of workflow_runs, with its workflow's name and version."""

    id: UUID
    workflow_id: UUID
    version_id: UUID
    name: str
    version: int
    tenant: str
    state: RunState
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any] | None
    trigger_kind: TriggerKind
    trigger_key: str | None
    dagster_run_id: str | None
    priority: Priority | None
    cancel_requested_at: datetime | None
    retry_of: UUID | None
    error_code: str | None
    error_message: str | None
    engine_id: UUID | None
    lease_expires_at: datetime | None
    revision: int
    reported_revision: int
    traceparent: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkflowTrigger:
    """A row of workflow_triggers, with its workflow's tenant, name and latest version."""

    id: UUID
    workflow_id: UUID
    tenant: str
    workflow: str
    latest_version: int
    name: str
    kind: TriggerKind
    spec: Mapping[str, Any]
    inputs: Mapping[str, Any]
    enabled: bool
    next_at: datetime | None
    last_fired_at: datetime | None
    seen_until: datetime | None
    created_at: datetime
