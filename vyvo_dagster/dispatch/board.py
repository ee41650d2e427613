"""What placement looks at: ready assignments, their nodes, and the attempts they hold.

Nodes and assignments are kept in memory and read again when Postgres notifies of a change; only
the count of attempts is read at each turn, since any api process may have ended one.
"""

import asyncio
import logging
from collections.abc import Mapping
from uuid import UUID

import psycopg

from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.domain.placement import Candidate
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.notify import REGISTRY_CHANNEL, listen
from vyvo_dagster.store.records import Assignment, Node

__all__ = ["Board", "free_gpu_memory"]

log = logging.getLogger(__name__)

# A notification lost in a failover is made up for this soon.
_REFRESH_SECONDS = 5.0


def free_gpu_memory(node: Node) -> int:
    """Free GPU memory of a node's last heartbeat, in bytes; 0 where it has no GPU."""
    return sum(
        int(gpu["memory_total_bytes"]) - int(gpu["memory_used_bytes"])
        for gpu in node.metrics.get("gpus", ())
    )


class Board:
    """The registry's and the nodes' part of placement, kept fresh by `run`."""

    def __init__(self, database: Database, dsn: str, changed: asyncio.Event) -> None:
        self._database = database
        self._dsn = dsn
        self._changed = changed
        self._nodes: dict[UUID, Node] = {}
        self._by_version: dict[UUID, list[Assignment]] = {}
        self.models: dict[str, frozenset[UUID]] = {}
        """Model id → its versions that some node has ready."""

    async def run(self) -> None:
        """Refresh on every notification, until canceled."""
        while True:
            try:
                async for _ in listen(self._dsn, REGISTRY_CHANNEL):
                    await self.refresh()
            except (psycopg.OperationalError, Unavailable) as error:
                log.warning("change notifications stopped: %s", str(error).splitlines()[0])
                await asyncio.sleep(1)

    async def sweep(self) -> None:
        """Refresh now and then, until canceled."""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            try:
                await self.refresh()
            except Unavailable:
                continue

    async def refresh(self) -> None:
        """Read nodes and assignments."""
        async with self._database.transaction() as store:
            nodes = await store.nodes.all()
            assignments = await store.assignments.placeable()
        self._nodes = {node.id: node for node in nodes}
        by_version: dict[UUID, list[Assignment]] = {}
        models: dict[str, set[UUID]] = {}
        for assignment in assignments:
            by_version.setdefault(assignment.version_id, []).append(assignment)
            models.setdefault(assignment.model_id, set()).add(assignment.version_id)
        self._by_version = by_version
        self.models = {model: frozenset(versions) for model, versions in models.items()}
        self._changed.set()

    async def candidates(self, store: Store) -> dict[UUID, list[Candidate]]:
        """Version → its candidates, with the attempts that they hold now."""
        held = await store.attempts.in_flight()
        return {
            version: [self._candidate(a, held) for a in found if a.node_id in self._nodes]
            for version, found in self._by_version.items()
        }

    def _candidate(self, assignment: Assignment, held: Mapping[UUID, int]) -> Candidate:
        node = self._nodes[assignment.node_id]
        return Candidate(
            node_id=node.id,
            assignment_id=assignment.id,
            node_state=node.state,
            assignment_state=AssignmentState(assignment.state),
            schedulable=not (node.cordoned or node.draining),
            slots=assignment.slots,
            in_flight=held.get(assignment.id, 0),
            free_gpu_memory_bytes=free_gpu_memory(node),
        )
