"""Loads on a node what jobs wait for and no node has, and tells those who wait how it goes."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Coroutine
from typing import Any, Final
from uuid import UUID

from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.duties import loops
from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.domain.loading import Host, Loaded, Step, next_step, reserve
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
    """One orchestrator at a time decides; the rows say what was decided, so any may be the next."""

    def __init__(self, database: Database, redis: AsyncRedis) -> None:
        self._database = database
        self._redis = redis
        # Version → what was told of it last, and to whom. It only saves repeating it.
        self._told: dict[UUID, tuple[str, set[UUID]]] = {}

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The duty as a loop that runs until canceled, by its name."""
        return loops((self.load_on_demand,))

    async def load_on_demand(self) -> None:
        """Ask for one load of each version that needs one; tell those who wait."""
        told: list[tuple[str, str, str]] = []
        async with self._database.transaction() as store:
            if not await store.demand.begin():
                return
            wanted = await store.demand.wanted(_VERSIONS)
            self._told = {w.version_id: t for w in wanted if (t := self._told.get(w.version_id))}
            if not wanted:
                return
            nodes = {node.id: node for node in await store.nodes.all()}
            in_force = await store.demand.in_force()
            for each in wanted:
                step = next_step(
                    _hosts(nodes, in_force),
                    [
                        Loaded(a.node_id, a.state)
                        for a in in_force
                        if a.version_id == each.version_id
                    ],
                    int(each.resources.get("gpu_memory_bytes", 0)),
                )
                if step.load_on is not None:
                    in_force.append(await _load(store, each, nodes[step.load_on]))
                    step = Step(node_id=step.load_on, state=AssignmentState.REQUESTED)
                if step.node_id is not None and step.state is not None:
                    told += await self._news(store, each, nodes.get(step.node_id), step.state)
        await events.publish_once(self._redis, told)

    async def _news(
        self, store: Store, wanted: Wanted, node: Node | None, state: AssignmentState
    ) -> list[tuple[str, str, str]]:
        """Events of those who have not heard this yet."""
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
        self._told[wanted.version_id] = (text, waiting)
        return [(str(job_id), JobEventKind.LOADING.value, text) for job_id in sorted(new)]


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
    return InForce(node.id, wanted.version_id, AssignmentState.REQUESTED, needed)


# States in which a heartbeat does not show yet what the version will take.
_LOADING = frozenset({AssignmentState.REQUESTED, AssignmentState.PULLING, AssignmentState.LOADING})


def _hosts(nodes: dict[UUID, Node], in_force: list[InForce]) -> list[Host]:
    loads: defaultdict[UUID, list[int]] = defaultdict(list)
    for each in in_force:
        if each.state in _LOADING:
            loads[each.node_id].append(each.gpu_memory_bytes)
    counts = Counter(each.node_id for each in in_force)
    return [
        Host(
            node.id,
            node.state,
            not (node.cordoned or node.draining),
            reserve(_free_by_gpu(node), loads[node.id]),
            counts[node.id],
        )
        for node in nodes.values()
    ]


def _free_by_gpu(node: Node) -> list[int]:
    return [
        int(gpu["memory_total_bytes"]) - int(gpu["memory_used_bytes"])
        for gpu in node.metrics.get("gpus", ())
    ]
