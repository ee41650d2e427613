"""Nodes and assignments: states, and the rule of missed heartbeats."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from vyvo_dagster.domain.state import StateMachine
from vyvo_dagster.errors import InvalidInput

__all__ = [
    "ASSIGNMENT",
    "NODE",
    "AssignmentState",
    "HeartbeatPolicy",
    "NodeEventKind",
    "NodeState",
    "parse_node_name",
]


class NodeState(StrEnum):
    """States of a node. Cordoned and draining are flags beside the state."""

    JOINING = "joining"
    READY = "ready"
    SUSPECT = "suspect"
    LOST = "lost"


class AssignmentState(StrEnum):
    """Observed states of an assignment."""

    REQUESTED = "requested"
    PULLING = "pulling"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    REMOVING = "removing"
    REMOVED = "removed"


class NodeEventKind(StrEnum):
    """What `node_events` records."""

    JOINED = "joined"
    READY = "ready"
    SUSPECT = "suspect"
    LOST = "lost"
    LEFT = "left"
    ASSIGNED = "assigned"
    ASSIGNMENT_READY = "assignment_ready"
    ASSIGNMENT_FAILED = "assignment_failed"
    ASSIGNMENT_REMOVED = "assignment_removed"
    CORDONED = "cordoned"
    UNCORDONED = "uncordoned"
    DRAINING = "draining"
    GPU_LOST = "gpu_lost"
    GPU_BACK = "gpu_back"


NODE: StateMachine[NodeState] = StateMachine(
    "node",
    {
        NodeState.JOINING: frozenset({NodeState.READY, NodeState.LOST}),
        NodeState.READY: frozenset({NodeState.SUSPECT, NodeState.LOST, NodeState.JOINING}),
        NodeState.SUSPECT: frozenset({NodeState.READY, NodeState.LOST, NodeState.JOINING}),
        # A lost node is never taken back as it was: it joins again and its old work stays fenced.
        NodeState.LOST: frozenset({NodeState.JOINING}),
    },
)

_A = AssignmentState
ASSIGNMENT: StateMachine[AssignmentState] = StateMachine(
    "assignment",
    {
        _A.REQUESTED: frozenset({_A.PULLING, _A.LOADING, _A.READY, _A.FAILED, _A.REMOVING}),
        _A.PULLING: frozenset({_A.LOADING, _A.READY, _A.FAILED, _A.REMOVING, _A.REQUESTED}),
        _A.LOADING: frozenset({_A.READY, _A.FAILED, _A.REMOVING, _A.REQUESTED, _A.PULLING}),
        # A runner that dies is loaded again; a node that rejoins starts over.
        _A.READY: frozenset({_A.REMOVING, _A.FAILED, _A.LOADING, _A.PULLING, _A.REQUESTED}),
        _A.FAILED: frozenset({_A.REMOVING, _A.REQUESTED, _A.PULLING, _A.LOADING, _A.READY}),
        _A.REMOVING: frozenset({_A.REMOVED}),
        _A.REMOVED: frozenset(),
    },
)


@dataclass(frozen=True, slots=True)
class HeartbeatPolicy:
    """When silence changes a node's state, by the server's clock only."""

    suspect_after: timedelta
    lost_after: timedelta

    def state(self, current: NodeState, last_heartbeat: datetime, now: datetime) -> NodeState:
        """The state of a node last heard at `last_heartbeat`; LOST is left only by joining again."""
        if current is NodeState.LOST:
            return NodeState.LOST
        silence = now - last_heartbeat
        if silence >= self.lost_after:
            return NodeState.LOST
        if current is NodeState.READY and silence >= self.suspect_after:
            return NodeState.SUSPECT
        return current


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def parse_node_name(value: str) -> str:
    """Return `value` if it is a host-like name of 1 to 63 characters, else raise InvalidInput."""
    if not _NAME.fullmatch(value):
        raise InvalidInput("node name must be 1 to 63 letters, digits and . _ - , such as gpu-01")
    return value
