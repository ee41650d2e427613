"""What the api answers, as typed, frozen values. Members of a newer server are passed over."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.domain.job import JOB, JobState, Priority
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.domain.node import AssignmentState, NodeState
from vyvo_dagster.domain.pool import OPERATION, OperationState
from vyvo_dagster.domain.webhook import DeliveryState
from vyvo_dagster.protocol import artifact
from vyvo_dagster.protocol.job import JobError

__all__ = [
    "Artifact",
    "Assignment",
    "Attempt",
    "Build",
    "BuildAccepted",
    "DeadLetter",
    "Event",
    "Job",
    "JobAccepted",
    "JobSummary",
    "Model",
    "Node",
    "Page",
    "Pool",
    "PoolMember",
    "PoolOperation",
    "PoolPolicy",
    "Queue",
    "Queues",
    "Version",
    "WebhookDelivery",
    "Weight",
]

T = TypeVar("T")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Page(_Answer, Generic[T]):
    """One page of a list, newest first; `next_cursor` is None on the last."""

    items: tuple[T, ...]
    next_cursor: str | None = None


class Artifact(_Answer, artifact.Artifact):
    """One output of a job. `presigned_url` reads it without credentials for a while; size in bytes."""

    id: UUID
    position: int
    presigned_url: str | None


class Attempt(_Answer):
    """One attempt of a job. `outcome` is None while it is under way."""

    attempt: int
    node_id: UUID
    outcome: str | None
    error_code: str | None
    error_message: str | None = None
    dispatched_at: datetime
    ended_at: datetime | None


class JobAccepted(_Answer):
    """A job was queued; `detail` says what it waits for where no node has the model."""

    job_id: UUID
    status: JobState
    queue_position: int
    eta_seconds: float | None
    detail: str | None = None


class JobSummary(_Answer):
    """A job without what it takes and makes. Timings in seconds by phase, progress 0 to 1."""

    job_id: UUID
    status: JobState
    tenant: str
    model_id: str
    version: str
    priority: Priority
    attempt: int
    max_attempts: int
    node_id: UUID | None
    progress: float | None
    error: JobError | None
    cancel_requested: bool
    timings: dict[str, float]
    created_at: datetime
    expires_at: datetime
    dispatched_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, a good one or not."""
        return self.status in JOB.terminal


class Job(JobSummary):
    """A job."""

    input: dict[str, Any]
    output: Any
    artifacts: tuple[Artifact, ...]
    attempts: tuple[Attempt, ...]
    queue_position: int | None = None


class DeadLetter(_Answer):
    """A job that failed through no fault of its prediction, or an unreadable queue entry."""

    id: UUID
    kind: str
    reason: str
    detail: str
    at: datetime | None
    tenant: str | None = None
    model_id: str | None = None
    version: str | None = None
    attempts: int | None = None
    last_node_id: UUID | None = None
    stream: str | None = None
    fields: dict[str, str] | None = None


class WebhookDelivery(_Answer):
    """A delivery of a job's webhook; `id` is its `webhook-id`."""

    id: UUID
    event: str
    url: str
    state: DeliveryState
    tries: int
    next_try_at: datetime | None
    last_status: int | None
    last_error: str | None
    created_at: datetime
    delivered_at: datetime | None


class BuildAccepted(_Answer):
    """A build was queued."""

    build_id: UUID
    status: BuildState


class Build(_Answer):
    """A build. Size in bytes, durations in seconds by step."""

    build_id: UUID
    status: BuildState
    model_id: str
    version: str
    version_id: UUID
    template: str
    backend: str
    backend_used: str | None
    host: str | None = None
    attempt: int = 0
    unchanged: bool = False
    image: str | None
    image_digest: str | None
    size_bytes: int | None
    lock_sha256: str | None = None
    log_url: str | None
    log_lines: int | None = None
    error: str | None
    durations: dict[str, float]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, a good one or not."""
        return self.status in BUILD.terminal


class Model(_Answer):
    """A model of the registry."""

    model_id: str
    tenant: str
    description: str
    created_at: datetime


class Version(_Answer):
    """A version of a model."""

    id: UUID
    model_id: str
    version: str
    state: VersionState
    template: str
    runner_image: str | None
    image_digest: str | None
    weights_sha256: str | None = None
    resources: dict[str, int] = Field(default_factory=dict[str, int])
    env: dict[str, str] = Field(default_factory=dict[str, str])
    build_id: UUID | None = None
    input_schema: dict[str, Any] | None
    created_at: datetime


class Assignment(_Answer):
    """A version that should be loaded on a node, and what its agent sees of it."""

    id: UUID
    node_id: UUID
    model_id: str
    version: str
    version_id: UUID
    state: AssignmentState
    detail: str | None
    slots: int


class Drain(_Answer):
    """How far a drain is; `drained_at` once it is over. `models_to_move` have no place elsewhere yet."""

    started_at: datetime | None
    deadline_at: datetime | None
    drained_at: datetime | None
    jobs_left: int
    models_to_move: tuple[str, ...]
    models_loaded: int


class Node(_Answer):
    """A node with the assignments in force. `schedulable` is false while it is cordoned or drained."""

    id: UUID
    name: str
    state: NodeState
    cordoned: bool = False
    draining: bool = False
    schedulable: bool
    drain: Drain | None = None
    labels: dict[str, str]
    capabilities: dict[str, Any] = Field(default_factory=dict[str, Any])
    last_heartbeat_at: datetime
    clock_skew_seconds: float = 0.0
    assignments: tuple[Assignment, ...]


class NodeEvent(_Answer):
    """An entry of a node's history."""

    id: UUID
    kind: str
    detail: dict[str, Any]
    created_at: datetime


class PoolMember(_Answer):
    """A node of a pool; not `ready` until it has joined. `running` counts its jobs."""

    name: str
    ready: bool
    cordoned: bool
    running: int


class PoolPolicy(_Answer):
    """The size that a pool's policy would ask for now, and why; `waiting` counts jobs."""

    size: int
    reason: str
    waiting: int


class Pool(_Answer):
    """A node pool. `scaler` has its `kind` and what that one is told; times in seconds."""

    id: UUID
    name: str
    scaler: dict[str, Any]
    host: str | None
    min_size: int
    max_size: int
    queue_depth_target: int | None
    cool_down_seconds: int
    drain_seconds: int
    join_seconds: int
    models: tuple[str, ...]
    size: int
    members: tuple[PoolMember, ...]
    policy: PoolPolicy
    scaled_at: datetime | None
    created_at: datetime


class PoolOperation(_Answer):
    """A change of a pool's size. `log` is what came after the offset that was asked for."""

    id: UUID
    pool: str
    status: OperationState
    dry_run: bool
    from_size: int
    size: int
    reason: str
    requested_by: str
    plan: dict[str, Any]
    log: str
    log_size: int
    error_code: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, a good one or not."""
        return self.status in OPERATION.terminal


class Queue(_Answer):
    """Jobs of one version, priority class and tenant. `depth` wait, the oldest for `oldest_seconds`."""

    model_id: str
    version: str
    priority: Priority
    tenant: str
    depth: int
    oldest_seconds: float | None
    in_flight: int
    weight: float


class Queues(_Answer):
    """The queues that are not empty, the deepest first; `truncated`: there are more."""

    items: tuple[Queue, ...]
    truncated: bool


class Weight(_Answer):
    """A tenant's weight among those who wait; `model_id` None: for all models without their own."""

    tenant: str
    model_id: str | None
    weight: float
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream. `kind` is its name, such as "progress"; `id` resumes after it."""

    id: str
    kind: str
    data: Mapping[str, Any]
