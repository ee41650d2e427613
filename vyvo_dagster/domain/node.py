"""Nodes and assignments: states, and the rule of missed heartbeats."""

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

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
    ASSIGNMENT_MOVED = "assignment_moved"
    UNASSIGNED = "unassigned"
    CORDONED = "cordoned"
    UNCORDONED = "uncordoned"
    DRAINING = "draining"
    DRAINED = "drained"
    DRAIN_DEADLINE = "drain_deadline"
    CREDENTIAL_REPLACED = "credential_replaced"
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
    """What silence and heartbeats make of a node, by the server's clock only.

    A node that was suspect is ready again by its first heartbeat, but not one that has been so
    again and again: from the second time on it stays suspect until it was heard without a gap for
    a probation, which is `suspect_after` and doubles with each time. Its suspicions are forgotten
    once there was none for `MEMORY` times `suspect_after`.

    Raises:
        InvalidInput: silence would make a node lost before it makes it suspect.
    """

    suspect_after: timedelta
    lost_after: timedelta

    MEMORY: ClassVar[int] = 20
    LONGEST_PROBATION: ClassVar[int] = 8
    """In times of `suspect_after`."""

    def __post_init__(self) -> None:
        if not timedelta(0) < self.suspect_after < self.lost_after:
            raise InvalidInput(
                f"a node must be suspect before it is lost: {self.suspect_after} and {self.lost_after}"
            )

    @property
    def forgets_after(self) -> timedelta:
        """Time without a suspicion after which earlier ones count no more."""
        return self.MEMORY * self.suspect_after

    def probation(self, suspicions: int) -> timedelta:
        """How long a node must be heard without a gap that became suspect for the n-th time."""
        if suspicions < 2:
            return timedelta(0)
        return min(2 ** min(suspicions - 2, 8), self.LONGEST_PROBATION) * self.suspect_after

    def silent(self, current: NodeState, silence: timedelta) -> NodeState:
        """The state of a node that was last heard `silence` ago; LOST is left by joining only."""
        if current is NodeState.LOST or silence >= self.lost_after:
            return NodeState.LOST
        if current is NodeState.READY and silence >= self.suspect_after:
            return NodeState.SUSPECT
        return current

    def heard(self, current: NodeState, suspicions: int, heard_for: timedelta) -> NodeState:
        """The state of a node by a heartbeat now; a lost one is not taken back.

        Args:
            suspicions: how often it became suspect, the last time included.
            heard_for: time since its first heartbeat after its last gap.
        """
        if current is NodeState.LOST:
            return NodeState.LOST
        if current is NodeState.SUSPECT and heard_for < self.probation(suspicions):
            return NodeState.SUSPECT
        return NodeState.READY


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def parse_node_name(value: str) -> str:
    """Return `value` if it is a host-like name of 1 to 63 characters, else raise InvalidInput."""
    if not _NAME.fullmatch(value):
        raise InvalidInput("node name must be 1 to 63 letters, digits and . _ - , such as gpu-01")
    return value
