"""Moves what is loaded on nodes that are lost or drained, and ends drains."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.duties import loops
from vyvo_dagster.dispatch.ends import count_ends
from vyvo_dagster.dispatch.hosts import hosts_of
from vyvo_dagster.dispatch.requeue import publish_job_changes, requeue_lost
from vyvo_dagster.domain.node import AssignmentState, NodeEventKind
from vyvo_dagster.domain.placement import Homeless, rehome
from vyvo_dagster.protocol.job import AttemptStatus, OrderKind
from vyvo_dagster.store.attempts import Gone
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.moves import Leaving, Moving
from vyvo_dagster.store.records import Job, Node
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis

__all__ = ["Mover"]

log = logging.getLogger(__name__)

_NAMED: Final = 100
_LONGEST_PAUSE: Final = 15.0
_DEADLINE: Final = Gone(
    str(AttemptStatus.HANDED_BACK),
    "drain_deadline",
    "ended at the deadline of its node's drain; it is tried on another node",
)


class Mover:
    """One orchestrator at a time decides; a turn is one transaction, so nothing moves twice.

    A lost node is fenced by its state: it is held locked, and serves nothing before it joins again
    and is told what it should run then. What fits nowhere stays. It is looked at when nodes or
    assignments change; else ever more seldom, as memory that becomes free is told by no notice.

    Args:
        notices: how often the registry was said to have changed; another number means that it has.
    """

    def __init__(self, database: Database, redis: AsyncRedis, notices: Callable[[], int]) -> None:
        self._database = database
        self._redis = redis
        self._notices = notices
        self._noticed = -1
        self._pause = 0.0
        self._paused_until = 0.0

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The duty as a loop that runs until canceled, by its name."""
        return loops((self.move_assignments,))

    async def move_assignments(self) -> None:
        """Give a place elsewhere to what must leave; unload what has left; end drains."""
        noticed, now = self._notices(), time.monotonic()
        if noticed == self._noticed and now < self._paused_until:
            return
        if noticed != self._noticed:
            self._noticed, self._pause = noticed, 0.0
        ended: list[Job] = []
        async with self._database.transaction() as store:
            if not await store.demand.begin():
                return
            leaving = await store.moves.leaving()
            if not leaving:
                return
            for each in leaving:
                if each.overdue and not each.lost:
                    ended += await _end_jobs(store, each)
            by_node: defaultdict[UUID, list[Moving]] = defaultdict(list)
            for found in await store.moves.moving([each.id for each in leaving]):
                by_node[found.node_id].append(found)
            turn = _Turn(store, {node.id: node for node in await store.nodes.all()})
            moved = await turn.move(leaving, by_node)
            for each in leaving:
                if each.lost:
                    await turn.forget(each, by_node[each.id], moved)
                else:
                    await turn.unload(each, by_node[each.id], moved)
            await _end_drains(store, leaving)
        count_ends(ended)
        # A drain goes on as jobs end, of which no notice tells.
        stuck = not moved and all(each.lost for each in leaving)
        self._pause = min(max(2 * self._pause, 1.0), _LONGEST_PAUSE) if stuck else 0.0
        self._paused_until = now + self._pause
        await publish_job_changes(self._redis, ended)


class _Turn:
    """One turn's writes."""

    def __init__(self, store: Store, nodes: Mapping[UUID, Node]) -> None:
        self._store = store
        self._nodes = nodes

    async def move(
        self, leaving: Sequence[Leaving], by_node: Mapping[UUID, Sequence[Moving]]
    ) -> set[UUID]:
        """Ask for successors of what people asked for; the ids of what has one now."""
        homeless = [
            Homeless(m.id, m.version_id, m.gpu_memory_bytes)
            for each in leaving
            for m in by_node.get(each.id, ())
            if not m.on_demand and m.replaced_by is None and m.state is not AssignmentState.REMOVING
        ]
        if not homeless:
            return set()
        in_force = await self._store.demand.in_force()
        present: defaultdict[UUID, set[UUID]] = defaultdict(set)
        on_demand: defaultdict[UUID, set[UUID]] = defaultdict(set)
        for each in in_force:
            present[each.version_id].add(each.node_id)
            if each.on_demand and each.state is not AssignmentState.REMOVING:
                on_demand[each.version_id].add(each.node_id)
        placed = rehome(homeless, hosts_of(self._nodes, in_force), present, on_demand)
        for each in leaving:
            for m in by_node.get(each.id, ()):
                if m.id in placed:
                    await self._move(each, m, self._nodes[placed[m.id]])
        return set(placed)

    async def _move(self, leaving: Leaving, moving: Moving, to: Node) -> None:
        store, why = self._store, "lost" if leaving.lost else "drained"
        name = f"{moving.model_id}@{moving.version}"
        log.warning("%s moves from %s, which is %s, to %s", name, leaving.name, why, to.name)
        made = await store.assignments.request(
            id=uuid7(), node_id=to.id, version_id=moving.version_id
        )
        what = {"model_id": moving.model_id, "version": moving.version}
        await store.nodes.add_event(
            id=uuid7(), node_id=leaving.id, kind=NodeEventKind.ASSIGNMENT_MOVED,
            detail={"assignment_id": str(moving.id), **what, "to": to.name,
                    "successor_id": str(made.id), "because": f"the node is {why}"},
        )  # fmt: skip
        await store.nodes.add_event(
            id=uuid7(), node_id=to.id, kind=NodeEventKind.ASSIGNED,
            detail={"assignment_id": str(made.id), **what, "by": f"moved from {leaving.name}",
                    "predecessor_id": str(moving.id)},
        )  # fmt: skip
        await _sync(store, to.id)
        if leaving.lost:
            await store.moves.end(moving.id, f"moved to {to.name}: its node was lost")
        else:
            await store.moves.succeed(moving.id, made.id)

    async def forget(
        self, lost: Leaving, moving: Sequence[Moving], moved: set[UUID]
    ) -> None:  # fmt: skip
        """Of a lost node: what was loaded on demand is loaded where jobs wait; what was leaving has left."""
        for m in moving:
            gone = m.on_demand or m.state is AssignmentState.REMOVING or m.replaced_by is not None
            if not gone or m.id in moved:
                continue
            await self._store.moves.end(m.id, "its node was lost")
            await self._store.nodes.add_event(
                id=uuid7(), node_id=lost.id, kind=NodeEventKind.ASSIGNMENT_REMOVED,
                detail={"assignment_id": str(m.id), "model_id": m.model_id, "version": m.version,
                        "detail": "the node is lost"},
            )  # fmt: skip

    async def unload(self, drained: Leaving, moving: Sequence[Moving], moved: set[UUID]) -> None:
        """Of a node that is drained: unload what is needed there no more and runs nothing."""
        going = [
            m for m in moving
            if (m.on_demand or m.replaced_by is not None or m.id in moved)
            and m.state is not AssignmentState.REMOVING and m.running == 0
        ]  # fmt: skip
        for m in going:
            await self._store.moves.unload(m.id)
        if going:
            await _sync(self._store, drained.id)


async def _end_jobs(store: Store, node: Leaving) -> list[Job]:
    """At the deadline: what still runs goes back to the queue, and its agent ends it."""
    changed: list[Job] = []
    for job in await store.attempts.of_node(node.id):
        now = await requeue_lost(store, job, _DEADLINE, charged=False)
        if now is not None:
            changed.append(now)
    left = (await store.moves.counts([node.id]))[node.id].to_move
    log.warning("the drain of %s is at its deadline: %d jobs are ended", node.name, len(changed))
    await store.nodes.add_event(
        id=uuid7(), node_id=node.id, kind=NodeEventKind.DRAIN_DEADLINE,
        detail={"jobs_ended": len(changed), "jobs": [str(job.id) for job in changed[:_NAMED]],
                "models_left": list(left)[:_NAMED]},
    )  # fmt: skip
    await store.moves.end_drain(node.id)
    # The heartbeat that this asks for tells the agent which attempts are not its own any more.
    await _sync(store, node.id)
    return changed


async def _end_drains(store: Store, leaving: Sequence[Leaving]) -> None:
    counts = await store.moves.counts([each.id for each in leaving])
    for each in leaving:
        node = await store.nodes.get(each.id)
        left = counts[each.id]
        if node is None or not node.draining or node.drained_at is not None:
            continue
        if left.jobs == 0 and left.loaded == 0:
            await store.moves.end_drain(each.id)
            await store.nodes.add_event(id=uuid7(), node_id=each.id, kind=NodeEventKind.DRAINED)


async def _sync(store: Store, node_id: UUID) -> None:
    await store.outbox.add(keys.node(node_id), {"kind": OrderKind.SYNC.value, "body": ""})
