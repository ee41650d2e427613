"""Which node gets a job or a model that must move: pure functions of what is needed and what nodes have.

Order of preference: a node where the version is ready and has a free slot, first those on which
this job has not failed before, then the one with the least running work; among equals the
fullest GPU, so that room stays whole elsewhere (best-fit bin packing).
"""

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from vyvo_dagster.domain.loading import Host, reserve
from vyvo_dagster.domain.node import AssignmentState, NodeState

__all__ = ["Candidate", "Homeless", "choose", "place", "rehome"]


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
    return min(free, key=lambda c: (c.node_id in avoid, *_rank(c, c.in_flight)), default=None)


def place(
    candidates: Iterable[Candidate], jobs: Sequence[frozenset[UUID]]
) -> list[Candidate | None]:
    """A candidate for each job in turn, as `choose` would with the slots taken before it counted.

    Args:
        candidates: assignments of the version that all the jobs ask for, as they are before.
        jobs: the nodes that each job avoids.
    """
    by_id = {c.assignment_id: c for c in candidates if c.free_slots > 0}
    held = {id_: c.in_flight for id_, c in by_id.items()}
    heap = [(_rank(c, c.in_flight), id_) for id_, c in by_id.items()]
    heapq.heapify(heap)
    placed: list[Candidate | None] = []
    for avoid in jobs:
        passed: list[tuple[_Rank, UUID]] = []
        while heap and by_id[heap[0][1]].node_id in avoid:
            passed.append(heapq.heappop(heap))
        if heap:
            _, id_ = heapq.heappop(heap)
        elif passed:
            _, id_ = passed.pop(0)
        else:
            placed.append(None)
            continue
        for each in passed:
            heapq.heappush(heap, each)
        chosen = by_id[id_]
        held[id_] += 1
        if held[id_] < chosen.slots:
            heapq.heappush(heap, (_rank(chosen, held[id_]), id_))
        placed.append(chosen)
    return placed


_Rank = tuple[float, int, bytes, bytes]


def _rank(candidate: Candidate, in_flight: int) -> _Rank:
    """The lower the better: least loaded, then the fullest GPU, then any order that is always the same."""
    return (
        in_flight / candidate.slots,
        candidate.free_gpu_memory_bytes,
        candidate.node_id.bytes,
        candidate.assignment_id.bytes,
    )


@dataclass(frozen=True, slots=True)
class Homeless:
    """An assignment whose node cannot serve it any more, and the GPU memory of its version in bytes."""

    assignment_id: UUID
    version_id: UUID
    gpu_memory_bytes: int


def rehome(
    homeless: Iterable[Homeless],
    hosts: Iterable[Host],
    present: Mapping[UUID, Collection[UUID]],
    on_demand: Mapping[UUID, Collection[UUID]],
) -> dict[UUID, UUID]:
    """A new node for each assignment that fits somewhere; assignment id → node id.

    The largest go first, each to the node that takes work and whose GPU it fits most tightly, the
    one with the fewest assignments among equals; no node gets a version twice. What was placed
    before counts for what comes after it. A node that has the version on demand is taken first: it
    keeps it then.

    Args:
        hosts: all nodes that are not lost.
        present: version → nodes on which it is in force already.
        on_demand: version → those of them on which only the orchestrator asked for it.
    """
    left = {host.node_id: host for host in hosts if host.takes_work}
    taken = {version: set(nodes) for version, nodes in present.items()}
    spare = {version: set(nodes) for version, nodes in on_demand.items()}
    found: dict[UUID, UUID] = {}
    for each in sorted(homeless, key=lambda h: (-h.gpu_memory_bytes, h.assignment_id.bytes)):
        kept = [id_ for id_ in spare.get(each.version_id, ()) if id_ in left]
        if kept:
            found[each.assignment_id] = min(kept, key=lambda id_: id_.bytes)
            spare[each.version_id].discard(found[each.assignment_id])
            continue
        there = taken.setdefault(each.version_id, set())
        rooms = {
            id_: room
            for id_, host in left.items()
            if id_ not in there and (room := host.room(each.gpu_memory_bytes)) is not None
        }
        if not rooms:
            continue
        best = min(rooms, key=lambda id_: (rooms[id_], left[id_].assignments, id_.bytes))
        host = left[best]
        left[best] = replace(
            host,
            free_gpu_bytes=reserve(host.free_gpu_bytes, [each.gpu_memory_bytes]),
            assignments=host.assignments + 1,
        )
        there.add(best)
        found[each.assignment_id] = best
    return found
