"""`node_heartbeats`: what nodes report of their assignments, as events of the asset `deployment`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from dagster import (
    AssetMaterialization,
    AssetObservation,
    DefaultSensorStatus,
    MetadataValue,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    TableRecord,
    sensor,
)

from resources import StoreResource
from vyvo_dagster.domain.build import partition_key
from vyvo_dagster.domain.node import AssignmentState, NodeState
from vyvo_dagster.execution.names import DEPLOYMENT
from vyvo_dagster.store.database import Store

__all__ = ["node_heartbeats"]

Rows = list[dict[str, str]]


@sensor(
    minimum_interval_seconds=10,
    default_status=DefaultSensorStatus.RUNNING,
    description="Record each change of the assignments in force as an event of deployment.",
)
def node_heartbeats(
    context: SensorEvaluationContext, store: StoreResource
) -> SensorResult | SkipReason:
    """A version with a ready node is materialized; any other change is an observation.

    The cursor holds a short hash of the assignments of each version, so that only changes are told.
    """
    seen = cast("dict[str, str]", json.loads(context.cursor) if context.cursor else {})
    found = store.call(_assignments)
    now = {partition: _hash(rows) for partition, rows in found.items()}
    changed = sorted(p for p in now.keys() | seen.keys() if now.get(p) != seen.get(p))
    if not changed:
        return SkipReason("no assignment changed")
    return SensorResult(
        asset_events=[_event(partition, found.get(partition, [])) for partition in changed],
        cursor=json.dumps(now, sort_keys=True),
    )


async def _assignments(db: Store) -> Mapping[str, Rows]:
    """Partition → its assignments on nodes that are not lost, by node name."""
    nodes = {node.id: node for node in await db.nodes.all()}
    found: dict[str, Rows] = {}
    for assignment in await db.assignments.of_nodes(list(nodes)):
        node = nodes[assignment.node_id]
        found.setdefault(partition_key(assignment.model_id, assignment.version), []).append(
            {"node": node.name, "node_state": node.state.value, "state": assignment.state.value}
        )
    return {partition: sorted(rows, key=lambda r: r["node"]) for partition, rows in found.items()}


def _hash(rows: Rows) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def _event(partition: str, rows: Rows) -> AssetMaterialization | AssetObservation:
    ready = sum(
        r["state"] == AssignmentState.READY and r["node_state"] == NodeState.READY for r in rows
    )
    metadata: dict[str, Any] = {"ready_nodes": ready, "assignments": len(rows)}
    if rows:
        metadata["nodes"] = MetadataValue.table([TableRecord(r) for r in rows])
    kind = AssetMaterialization if ready else AssetObservation
    return kind(asset_key=DEPLOYMENT, partition=partition, metadata=metadata)
