"""Rows as typed, frozen records; field for field the columns of `tables`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.domain.node import AssignmentState, NodeState
from vyvo_dagster.domain.retention import ArtifactState, SweepState
from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.domain.webhook import DeliveryState

__all__ = [
    "ApiKey",
    "ArtifactRow",
    "Assignment",
    "AuditEntry",
    "Build",
    "DeadEntry",
    "Job",
    "JobAttempt",
    "KeyLimits",
    "Model",
    "ModelVersion",
    "Node",
    "NodeEvent",
    "OutboxEntry",
    "SweepRow",
    "WebhookDelivery",
]


@dataclass(frozen=True, slots=True)
class Model:
    """A row of models."""

    model_id: str
    tenant: str
    description: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A row of model_versions. Sizes in bytes."""

    id: UUID
    model_id: str
    version: str
    state: VersionState
    template: str
    modality: Modality
    runner_image: str | None
    image_digest: str | None
    weights_uri: str | None
    weights_url: str | None
    weights_sha256: str | None
    weights_size_bytes: int | None
    env: Mapping[str, str]
    resources: Mapping[str, int]
    input_schema: Mapping[str, Any] | None
    output_schema: Mapping[str, Any] | None
    build_id: UUID | None
    collected_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Build:
    """A row of runner_builds."""

    id: UUID
    tenant: str
    model_id: str
    version: str
    version_id: UUID
    runner_name: str
    template: str
    repo: str | None
    ref: str | None
    source_commit: str | None
    weights_uri: str | None
    env: Mapping[str, str]
    base_image: str | None
    backend: BuildBackend
    backend_used: BuildBackend | None
    state: BuildState
    launch_claimed_at: datetime | None
    run_id: str | None
    host: str | None
    attempt: int
    rebuild_of: UUID | None
    unchanged: bool
    image: str | None
    image_digest: str | None
    size_bytes: int | None
    lock_sha256: str | None
    lock_url: str | None
    sbom_url: str | None
    base_digest: str | None
    template_hash: str | None
    input_schema: Mapping[str, Any] | None
    output_schema: Mapping[str, Any] | None
    log_url: str | None
    log_lines: int | None
    error: str | None
    durations: Mapping[str, float]
    traceparent: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Node:
    """A row of nodes, with its capabilities."""

    id: UUID
    name: str
    state: NodeState
    boot_id: UUID
    cordoned: bool
    draining: bool
    drain_started_at: datetime | None
    drain_deadline_at: datetime | None
    drained_at: datetime | None
    suspicions: int
    labels: Mapping[str, str]
    metrics: Mapping[str, Any]
    last_heartbeat_at: datetime
    clock_skew_seconds: float
    created_at: datetime
    capabilities: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """A row of node_events."""

    id: UUID
    node_id: UUID
    kind: str
    detail: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Assignment:
    """A row of assignments, with the names of its version."""

    id: UUID
    node_id: UUID
    version_id: UUID
    state: AssignmentState
    detail: str | None
    slots: int
    created_at: datetime
    updated_at: datetime
    ready_at: datetime | None
    on_demand: bool
    replaced_by: UUID | None
    used_at: datetime | None
    model_id: str
    version: str


@dataclass(frozen=True, slots=True)
class Job:
    """A row of jobs."""

    id: UUID
    tenant: str
    model_id: str
    version_id: UUID
    version: str
    priority: Priority
    state: JobState
    input: Mapping[str, Any]
    output: Any
    error_code: str | None
    error_message: str | None
    attempt: int
    handed_back: int
    max_attempts: int
    node_id: UUID | None
    assignment_id: UUID | None
    lease_expires_at: datetime | None
    expires_at: datetime
    retry_at: datetime | None
    timeout_seconds: int
    cancel_requested_at: datetime | None
    progress: float | None
    timings: Mapping[str, float]
    traceparent: str | None
    webhook: Mapping[str, Any] | None
    created_at: datetime
    dispatched_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    requeued_at: datetime | None
    workflow_step_id: UUID | None
    workflow_step_attempt: int | None


@dataclass(frozen=True, slots=True)
class DeadEntry:
    """A row of dead_entries: a stream entry that could not be read."""

    id: UUID
    stream: str
    entry_id: str
    fields: Mapping[str, str]
    reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class JobAttempt:
    """A row of job_attempts."""

    job_id: UUID
    attempt: int
    node_id: UUID
    assignment_id: UUID
    outcome: str | None
    error_code: str | None
    error_message: str | None
    dispatched_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """A row of artifacts."""

    id: UUID
    tenant: str
    job_id: UUID
    position: int
    type: str
    url: str
    size_bytes: int
    mime_type: str
    expires_at: datetime | None
    created_at: datetime
    state: ArtifactState
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class SweepRow:
    """A row of artifact_sweeps."""

    id: UUID
    requested_by: str | None
    dry_run: bool
    state: SweepState
    run_id: str | None
    report: dict[str, Any] | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may do; None is no limit. `burst` is set exactly where `rate_per_second` is."""

    rate_per_second: float | None = None
    burst: int | None = None
    max_queued: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of api_keys, without its hash."""

    id: UUID
    prefix: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    node_id: UUID | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    limits: "KeyLimits"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A row of audit_log."""

    id: UUID
    tenant: str
    key_prefix: str
    action: str
    subject: str
    detail: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """A row of webhook_deliveries, without its payload."""

    id: UUID
    tenant: str
    job_id: UUID
    event: str
    url: str
    state: DeliveryState
    tries: int
    next_try_at: datetime
    last_status: int | None
    last_error: str | None
    created_at: datetime
    delivered_at: datetime | None


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A row of outbox: one stream entry still to be written."""

    id: int
    stream: str
    fields: Mapping[str, str]
