"""Loads on a node what jobs wait for and no node has, and tells those who wait how it goes."""

import json
import logging
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.duties import loops
from vyvo_dagster.dispatch.hosts import hosts_of, largest_gpu
from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.domain.loading import Idle, Loaded, Step, evict, expired, next_step
from vyvo_dagster.domain.node import AssignmentState, NodeEventKind
from vyvo_dagster.protocol.job import OrderKind
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.demand import InForce, Wanted
from vyvo_dagster.store.records import Node
from vyvo_dagster.streams import events, keys
from vyvo_dagster.streams.client import AsyncRedis

__all__ = ["Loading"]

log = logging.getLogger(__name__)

_VERSIONS: Final = 200
_TOLD_JOBS: Final = 1000


class Loading:
    """One orchestrator at a time decides; the rows say what was decided, so any may be the next.

    Args:
        idle_after: time without use after which what was loaded so is unloaded.
    """

    def __init__(
        self, database: Database, redis: AsyncRedis, idle_after: timedelta = timedelta(minutes=30)
    ) -> None:
        self._database = database
        self._redis = redis
        self._idle_after = idle_after
        # Version → what was told of it last, and to whom. It only saves repeating it.
        self._told: dict[UUID, tuple[str, set[UUID]]] = {}

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The duty as a loop that runs until canceled, by its name."""
        return loops((self.load_on_demand,))

    async def load_on_demand(self) -> None:
        """Ask for one load of each version that needs one; tell those who wait; unload what is idle."""
        told: list[tuple[str, str, str]] = []
        heard: dict[UUID, tuple[str, set[UUID]]] = {}
        async with self._database.transaction() as store:
            if not await store.demand.begin():
                return
            wanted = await store.demand.wanted(_VERSIONS)
            self._told = {w.version_id: t for w in wanted if (t := self._told.get(w.version_id))}
            idle = await store.demand.idle()
            gone = expired(idle, self._idle_after)
            await _unload(store, gone, "unused")
            if not wanted:
                return
            idle = [each for each in idle if each not in gone]
            nodes = {node.id: node for node in await store.nodes.all()}
            in_force = await store.demand.in_force()
            for each in wanted:
                needed = int(each.resources.get("gpu_memory_bytes", 0))
                there = [
                    Loaded(a.node_id, a.state) for a in in_force if a.version_id == each.version_id
                ]
                hosts = hosts_of(nodes, in_force)
                step = next_step(hosts, there, needed)
                if step.no_room and idle:
                    tried = {a.node_id for a in there}
                    large = [
                        host for host in hosts
                        if host.node_id not in tried and largest_gpu(nodes[host.node_id]) >= needed
                    ]  # fmt: skip
                    unloading = {a.node_id for a in in_force if a.state is AssignmentState.REMOVING}
                    unloading.update(i.node_id for i in gone)
                    oldest = evict(large, idle, needed, unloading)
                    if oldest is not None:
                        name = f"{each.model_id}@{each.version}"
                        await _unload(store, [oldest], f"its memory is needed for {name}")
                        idle.remove(oldest)
                        gone.append(oldest)
                if step.load_on is not None:
                    in_force.append(await _load(store, each, nodes[step.load_on]))
                    step = Step(node_id=step.load_on, state=AssignmentState.REQUESTED)
                if step.node_id is not None and step.state is not None:
                    node = nodes.get(step.node_id)
                    told += await self._news(store, each, node, step.state, heard)
        await events.publish_once(self._redis, told)
        self._told |= heard

    async def _news(
        self,
        store: Store,
        wanted: Wanted,
        node: Node | None,
        state: AssignmentState,
        told: dict[UUID, tuple[str, set[UUID]]],
    ) -> list[tuple[str, str, str]]:
        """Events of those who have not heard this yet; who has, once they are published, in `told`."""
        name = None if node is None else node.name
        data: dict[str, Any] = {"node": name, "state": state.value}
        if state is AssignmentState.FAILED:
            data["detail"] = (
                f"{wanted.model_id}@{wanted.version} could not be loaded on any node that has room"
            )
        text = json.dumps(data, separators=(",", ":"))
        last, heard = self._told.get(wanted.version_id, ("", set[UUID]()))
        waiting = set(await store.demand.waiting(wanted, _TOLD_JOBS))
        new = waiting - heard if last == text else waiting
        told[wanted.version_id] = (text, waiting)
        return [(str(job_id), JobEventKind.LOADING.value, text) for job_id in sorted(new)]


async def _unload(store: Store, idle: Sequence[Idle], why: str) -> None:
    for each in idle:
        log.info("unloading %s, which was loaded on demand: %s", each.assignment_id, why)
        await store.moves.unload(each.assignment_id)
        await store.nodes.add_event(
            id=uuid7(), node_id=each.node_id, kind=NodeEventKind.UNASSIGNED,
            detail={"assignment_id": str(each.assignment_id), "by": f"on demand: {why}"},
        )  # fmt: skip
    for node_id in {each.node_id for each in idle}:
        await store.outbox.add(keys.node(node_id), {"kind": OrderKind.SYNC.value, "body": ""})


async def _load(store: Store, wanted: Wanted, node: Node) -> InForce:
    made = await store.assignments.request(
        id=uuid7(), node_id=node.id, version_id=wanted.version_id, on_demand=True
    )
    log.info("loading %s@%s on %s, for which jobs wait", wanted.model_id, wanted.version, node.name)
    await store.nodes.add_event(
        id=uuid7(), node_id=node.id, kind=NodeEventKind.ASSIGNED,
        detail={"assignment_id": str(made.id), "model_id": wanted.model_id,
                "version": wanted.version, "by": "on demand"},
    )  # fmt: skip
    await store.outbox.add(keys.node(node.id), {"kind": OrderKind.SYNC.value, "body": ""})
    needed = int(wanted.resources.get("gpu_memory_bytes", 0))
    return InForce(node.id, wanted.version_id, AssignmentState.REQUESTED, needed, True)
