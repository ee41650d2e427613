"""Where a version is loaded that jobs wait for and no node has: a pure function of what nodes have."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from vyvo_dagster.domain.node import AssignmentState, NodeState

__all__ = ["Host", "Idle", "Loaded", "Step", "evict", "expired", "next_step", "reserve"]

_UNDER_WAY = frozenset(
    {AssignmentState.REQUESTED, AssignmentState.PULLING, AssignmentState.LOADING}
)


@dataclass(frozen=True, slots=True)
class Host:
    """A node as loading sees it. Bytes free are by GPU, without what is being loaded there."""

    node_id: UUID
    state: NodeState
    schedulable: bool
    free_gpu_bytes: Sequence[int]
    assignments: int

    @property
    def takes_work(self) -> bool:
        """Whether what is loaded there would be used."""
        return self.state is NodeState.READY and self.schedulable

    def room(self, needed: int) -> int | None:
        """Bytes left on the GPU that would fit most tightly; None where none fits."""
        if needed <= 0:
            return 0
        return min((free - needed for free in self.free_gpu_bytes if free >= needed), default=None)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An assignment in force of the version."""

    node_id: UUID
    state: AssignmentState


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done: load on `node_id`, or tell of what is. Both None: nothing.

    `state` FAILED without a node to load on says that all that could were tried. `no_room`: another
    node would be tried if it had room.
    """

    load_on: UUID | None = None
    node_id: UUID | None = None
    state: AssignmentState | None = None
    no_room: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """An assignment made on demand that is not in use and that nobody waits for."""

    assignment_id: UUID
    node_id: UUID
    gpu_memory_bytes: int
    idle_for: timedelta


def next_step(hosts: Iterable[Host], loaded: Sequence[Loaded], needed: int) -> Step:
    """What to do for a version that jobs wait for.

    Nothing where a node serves it; one load at a time; then the node with room whose GPU it fits
    most tightly, the one with the fewest assignments among equals, and never one that has failed.

    Args:
        hosts: all nodes that are not lost.
        loaded: the version's assignments in force, on whatever node.
        needed: GPU memory of the version, in bytes.
    """
    by_id = {host.node_id: host for host in hosts}
    useful = [a for a in loaded if a.node_id in by_id and by_id[a.node_id].takes_work]
    if any(a.state is AssignmentState.READY for a in useful):
        return Step()
    for each in useful:
        if each.state in _UNDER_WAY:
            return Step(node_id=each.node_id, state=each.state)
    taken = {a.node_id for a in loaded}
    rooms = {
        host.node_id: room
        for host in by_id.values()
        if host.takes_work and host.node_id not in taken and (room := host.room(needed)) is not None
    }
    if rooms:
        best = min(rooms, key=lambda id_: (rooms[id_], by_id[id_].assignments, id_.bytes))
        return Step(load_on=best)
    failed = [a for a in loaded if a.state is AssignmentState.FAILED]
    if failed:
        return Step(node_id=failed[-1].node_id, state=AssignmentState.FAILED, no_room=True)
    return Step(no_room=True)


def expired(idle: Iterable[Idle], after: timedelta) -> list[Idle]:
    """Those that have been idle for `after` and longer."""
    return [each for each in idle if each.idle_for >= after]


def evict(
    hosts: Iterable[Host], idle: Iterable[Idle], needed: int, unloading: Collection[UUID]
) -> Idle | None:
    """What to unload so that a version may fit: the one that has been idle the longest.

    One at a time: None while a node that could get room is still unloading something, and where
    all that is idle on a node would not be enough.

    Args:
        hosts: nodes on which the version may be loaded, and whose largest GPU it fits.
        needed: GPU memory of the version, in bytes.
        unloading: nodes on which something is being unloaded.
    """
    found = [each for each in idle if each.gpu_memory_bytes > 0]
    useful: set[UUID] = set()
    for host in hosts:
        freed = sum(each.gpu_memory_bytes for each in found if each.node_id == host.node_id)
        if host.takes_work and sum(host.free_gpu_bytes) + freed >= needed:
            useful.add(host.node_id)
    if useful.intersection(unloading):
        return None
    fit = [each for each in found if each.node_id in useful]
    return min(fit, key=lambda i: (-i.idle_for, i.assignment_id.bytes), default=None)


def reserve(free: Sequence[int], loads: Iterable[int]) -> list[int]:
    """Bytes free by GPU once `loads` are there, each on the GPU that it fits most tightly.

    A load that fits nowhere takes what the emptiest GPU has.
    """
    left = list(free)
    for load in sorted(loads, reverse=True):
        if load > 0 and left:
            fits = [at for at, bytes_ in enumerate(left) if bytes_ >= load]
            at = min(fits, key=left.__getitem__) if fits else left.index(max(left))
            left[at] = max(left[at] - load, 0)
    return left
