"""What nodes look like over REST; what agents say is in `vyvo_dagster.protocol.node`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from api.fields import Body
from vyvo_dagster.domain.node import AssignmentState, NodeState
from vyvo_dagster.store.moves import DrainCount
from vyvo_dagster.store.records import Assignment, Node, NodeEvent

__all__ = [
    "AssignRequest",
    "AssignmentView",
    "DrainRequest",
    "DrainView",
    "NodeEventView",
    "NodeMetricsView",
    "NodeView",
    "assignment_view",
    "event_view",
    "node_view",
]


class AssignRequest(Body):
    """Which version to load on a node."""

    model_id: str = Field(max_length=4096, examples=["vyvo/digits"])
    version_id: str = Field(
        max_length=4096, description="The version's id, or its name.", examples=["v1"]
    )
    weights_uri: str | None = Field(
        None, max_length=4096,
        description="Weights come from the version; if given, it must be the version's own.",
    )  # fmt: skip


class AssignmentView(BaseModel):
    """A version that should be loaded on a node, and what its agent sees of it."""

    id: UUID
    node_id: UUID
    model_id: str
    version: str
    version_id: UUID
    state: AssignmentState
    detail: str | None
    slots: int
    created_at: datetime
    updated_at: datetime
    ready_at: datetime | None
    on_demand: bool = Field(
        description="Made by the orchestrator, since jobs waited for the version."
    )


class DrainRequest(Body):
    """How a node is drained."""

    deadline_seconds: int | None = Field(
        None, ge=1, le=7 * 86400, examples=[600],
        description="Then what still runs is ended and queued again elsewhere; null waits for it.",
    )  # fmt: skip


class DrainView(BaseModel):
    """How far a drain is. It is over when nothing is left, or at its deadline."""

    started_at: datetime | None
    deadline_at: datetime | None
    drained_at: datetime | None
    jobs_left: int = Field(description="Jobs in flight there.")
    models_to_move: list[str] = Field(
        description="Versions without a place elsewhere yet.", examples=[["vyvo/digits@v1"]]
    )
    models_loaded: int = Field(description="Versions not unloaded yet.")


class NodeView(BaseModel):
    """A node. `schedulable` is false while it is cordoned or drained."""

    id: UUID
    name: str
    state: NodeState
    cordoned: bool
    draining: bool
    schedulable: bool
    drain: DrainView | None = Field(description="Null unless it is drained.")
    labels: dict[str, str]
    capabilities: dict[str, Any]
    last_heartbeat_at: datetime
    clock_skew_seconds: float
    created_at: datetime
    assignments: list[AssignmentView]


class NodeEventView(BaseModel):
    """An entry of a node's history."""

    id: UUID
    kind: str
    detail: dict[str, Any]
    created_at: datetime


class NodeMetricsView(BaseModel):
    """The last heartbeat's figures. Memory in bytes, utilisation 0 to 1, temperature in °C."""

    node_id: UUID
    received_at: datetime
    memory_available_bytes: int
    gpus: list[dict[str, Any]]
    running: list[dict[str, Any]]


def assignment_view(assignment: Assignment) -> AssignmentView:
    """An assignment's row as it is shown."""
    return AssignmentView.model_validate(assignment, from_attributes=True)


def node_view(
    node: Node, assignments: Sequence[Assignment], left: DrainCount | None = None
) -> NodeView:
    """A node's row as it is shown, with its assignments in force and, of a drain, what is left."""
    drain = None
    if node.draining:
        drain = DrainView(
            started_at=node.drain_started_at, deadline_at=node.drain_deadline_at,
            drained_at=node.drained_at, jobs_left=0 if left is None else left.jobs,
            models_to_move=[] if left is None else list(left.to_move),
            models_loaded=0 if left is None else left.loaded,
        )  # fmt: skip
    return NodeView(
        id=node.id, name=node.name, state=node.state, cordoned=node.cordoned,
        draining=node.draining, drain=drain, schedulable=not (node.cordoned or node.draining),
        labels=dict(node.labels), capabilities=dict(node.capabilities),
        last_heartbeat_at=node.last_heartbeat_at, clock_skew_seconds=node.clock_skew_seconds,
        created_at=node.created_at, assignments=[assignment_view(a) for a in assignments],
    )  # fmt: skip


def event_view(event: NodeEvent) -> NodeEventView:
    """A node event's row as it is shown."""
    return NodeEventView(
        id=event.id, kind=event.kind, detail=dict(event.detail), created_at=event.created_at
    )
