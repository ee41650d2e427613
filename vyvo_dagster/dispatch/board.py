"""What placement looks at: ready assignments, their nodes, and the attempts they hold.

Nodes and assignments are kept in memory and read again when Postgres notifies of a change. How many
attempts they hold is read at each turn, since any api process may have ended one.
"""

import asyncio
import logging
from collections.abc import Mapping
from uuid import UUID

import psycopg

from vyvo_dagster.domain.fairness import Weighing
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.domain.placement import Candidate
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Database
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
        self.notices = 0
        """How often something about versions, nodes or assignments was told of."""
        self.versions: dict[tuple[str, str], UUID] = {}
        """(model id, version) → id of each version that some node has ready."""
        self.weighing = Weighing({})
        """What share of a version's slots each tenant has."""

    async def run(self) -> None:
        """Refresh on every notification, until canceled."""
        while True:
            try:
                async for _ in listen(self._dsn, REGISTRY_CHANNEL):
                    self.notices += 1
                    await self.refresh()
            except (psycopg.OperationalError, Unavailable) as error:
                log.warning("change notifications stopped: %s", str(error).splitlines()[0])
                await asyncio.sleep(1)
            except Exception:
                log.exception("a refresh of the board broke")
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
        """Read nodes, assignments and weights."""
        async with self._database.transaction() as store:
            nodes = await store.nodes.all()
            assignments = await store.assignments.placeable()
            shares = await store.shares.all()
        self._nodes = {node.id: node for node in nodes}
        by_version: dict[UUID, list[Assignment]] = {}
        versions: dict[tuple[str, str], UUID] = {}
        for assignment in assignments:
            by_version.setdefault(assignment.version_id, []).append(assignment)
            versions[assignment.model_id, assignment.version] = assignment.version_id
        self._by_version = by_version
        self.versions = versions
        self.weighing = Weighing({(s.tenant, s.model_id): s.weight for s in shares})
        self._changed.set()

    def candidates(self, in_flight: Mapping[UUID, int]) -> dict[tuple[str, str], list[Candidate]]:
        """(model id, version) → its candidates, with the attempts in flight by assignment."""
        return {
            name: [
                self._candidate(a, in_flight)
                for a in self._by_version[version_id]
                if a.node_id in self._nodes
            ]
            for name, version_id in self.versions.items()
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
