"""Gauges that only the rows know: queue depths, ages, nodes, outbox lag."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable
from uuid import UUID

from prometheus_client import Gauge

from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.domain.node import NodeState
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.records import Node
from vyvo_dagster.telemetry import metrics

__all__ = ["Gauges"]

_SECONDS = 5.0


class Gauges:
    """Reads them every five seconds, until canceled."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queues: set[tuple[str, ...]] = set()
        self._nodes: set[tuple[str, ...]] = set()
        self._capacities: set[tuple[str, ...]] = set()
        self._gpus: set[tuple[str, ...]] = set()

    async def run(self) -> None:
        """Read until canceled; a database that is away leaves the last figures."""
        while True:
            with contextlib.suppress(Unavailable):
                await self.read()
            await asyncio.sleep(_SECONDS)

    async def read(self) -> None:
        """Set all gauges once; labels of queues, nodes and GPUs that are gone are dropped."""
        async with self._database.transaction() as store:
            depths = await store.jobs.depths()
            nodes = await store.nodes.all()
            slots: Counter[UUID] = Counter()
            for each in await store.assignments.placeable():
                slots[each.node_id] += each.slots
            metrics.OUTBOX_LAG.set(await store.outbox.lag_seconds())
            builds = await store.build_queue.depths()
            collected = await store.collected.totals()
        for state in BuildState:
            if state not in BUILD.terminal:
                metrics.BUILDS.labels(state).set(builds.get(state, 0))
        for kind, (count, size) in collected.items():
            metrics.COLLECTED.labels(kind).set(count)
            metrics.COLLECTED_BYTES.labels(kind).set(size)
        for model, priority, count, oldest in depths:
            metrics.QUEUE_DEPTH.labels(model, priority).set(count)
            metrics.QUEUE_OLDEST.labels(model, priority).set(oldest)
        self._queues = _forget(
            self._queues,
            {(m, str(p)) for m, p, _, _ in depths},
            metrics.QUEUE_DEPTH,
            metrics.QUEUE_OLDEST,
        )
        gpus: set[tuple[str, ...]] = set()
        capacities: set[tuple[str, ...]] = set()
        for node in nodes:
            has = {**_capacity(node), "slots": slots[node.id]}
            for kind, amount in has.items():
                capacities.add((node.name, kind))
                metrics.NODE_CAPACITY.labels(node.name, kind).set(amount)
            metrics.NODE_UP.labels(node.name).set(node.state is NodeState.READY)
            for gpu in node.metrics.get("gpus", ()):
                labels = (node.name, str(gpu["index"]))
                gpus.add(labels)
                metrics.GPU_MEMORY.labels(*labels).set(gpu["memory_used_bytes"])
                metrics.GPU_UTILIZATION.labels(*labels).set(gpu["utilization_ratio"])
        self._nodes = _forget(self._nodes, {(n.name,) for n in nodes}, metrics.NODE_UP)
        self._capacities = _forget(self._capacities, capacities, metrics.NODE_CAPACITY)
        self._gpus = _forget(self._gpus, gpus, metrics.GPU_MEMORY, metrics.GPU_UTILIZATION)


def _capacity(node: Node) -> dict[str, float]:
    """What a node said that it has, but for GPUs that are lost."""
    said = node.capabilities
    gpus = [gpu for gpu in said.get("gpus", ()) if gpu.get("lost") is None]
    return {
        "cpus": said.get("cpus", 0),
        "memory_bytes": said.get("memory_bytes", 0),
        "gpus": len(gpus),
        "gpu_memory_bytes": sum(gpu["memory_bytes"] for gpu in gpus),
    }


def _forget(
    before: set[tuple[str, ...]], now: set[tuple[str, ...]], *gauges: Gauge
) -> set[tuple[str, ...]]:
    gone: Iterable[tuple[str, ...]] = before - now
    for labels in gone:
        for gauge in gauges:
            gauge.remove(*labels)
    return now
