"""GPUs that fall off the bus, and those that come back: kept in what a node has, told in its history."""

from collections.abc import Sequence

from uuid_utils.compat import uuid7

from vyvo_dagster.domain.node import NodeEventKind
from vyvo_dagster.protocol.node import GpuMetrics
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Node

__all__ = ["observe"]


async def observe(store: Store, node: Node, readings: Sequence[GpuMetrics]) -> bool:
    """Record which GPUs were lost or came back since the last heartbeat; whether any did."""
    lost = {reading.index: reading.lost for reading in readings}
    known = node.capabilities.get("gpus", [])
    changed = [
        gpu for gpu in known
        if gpu["index"] in lost and (lost[gpu["index"]] is None) != (gpu.get("lost") is None)
    ]  # fmt: skip
    if not changed:
        return False
    for gpu in changed:
        why = lost[gpu["index"]]
        await store.nodes.add_event(
            id=uuid7(), node_id=node.id,
            kind=NodeEventKind.GPU_BACK if why is None else NodeEventKind.GPU_LOST,
            detail={"index": gpu["index"], "uuid": gpu["uuid"], "name": gpu["name"], "detail": why},
        )  # fmt: skip
    now = [gpu | {"lost": lost[gpu["index"]]} if gpu in changed else gpu for gpu in known]
    await store.nodes.set_capabilities(node.id, {**node.capabilities, "gpus": now})
    return True
