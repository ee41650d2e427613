"""Which node gets a job: a pure function of what the model needs and what each node has.

Order of preference: a node where the version is ready and has a free slot, first those on which
this job has not failed before, then the one with the least running work; among equals the
fullest GPU, so that room stays whole elsewhere (best-fit bin packing).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from vyvo_dagster.domain.node import AssignmentState, NodeState

__all__ = ["Candidate", "choose"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One assignment as placement sees it."""

    node_id: UUID
    assignment_id: UUID
    node_state: NodeState
    assignment_state: AssignmentState
    schedulable: bool
    """Neither cordoned nor draining."""
    slots: int
    """Concurrent predictions that the loaded version serves."""
    in_flight: int
    """Attempts that this assignment holds now."""
    free_gpu_memory_bytes: int

    @property
    def free_slots(self) -> int:
        """Slots that a new attempt could take; 0 unless node and version are ready."""
        ready = (
            self.node_state is NodeState.READY and self.assignment_state is AssignmentState.READY
        )
        return max(self.slots - self.in_flight, 0) if ready and self.schedulable else 0


def choose(
    candidates: Iterable[Candidate], avoid: frozenset[UUID] = frozenset()
) -> Candidate | None:
    """The best candidate with a free slot, or None.

    Args:
        candidates: assignments of the version that the job asks for.
        avoid: nodes on which an earlier attempt of this job failed or was lost. They are taken
            only when no other node has a slot: a job that can run nowhere else is not held back.
    """
    free = [c for c in candidates if c.free_slots > 0]
    return min(
        free,
        key=lambda c: (
            c.node_id in avoid,
            c.in_flight / c.slots,
            c.free_gpu_memory_bytes,
            c.node_id.bytes,
        ),
        default=None,
    )
