"""Gauges of nodes and GPUs go with them."""

from prometheus_client import generate_latest

from tests.integration.dispatch.conftest import World
from vyvo_dagster.dispatch.gauges import Gauges
from vyvo_dagster.domain.node import NodeState


async def test_a_lost_nodes_gauges_are_dropped(own_world: World) -> None:
    node_id, boot = await own_world.node()
    gpu = {"memory_total_bytes": 9, "memory_used_bytes": 7, "utilization_ratio": 0.5}
    async with own_world.database.transaction() as store:
        node = await store.nodes.get(node_id)
    assert node is not None
    gauges = Gauges(own_world.database)

    async def told() -> list[str]:
        await gauges.read()
        return [line for line in generate_latest().decode().splitlines() if node.name in line]

    await own_world.beat(node_id, boot, gpus=[{"index": i, **gpu} for i in range(2)])
    assert len(await told()) == 10  # up, five capacities, and memory and utilization of two GPUs
    await own_world.beat(node_id, boot, gpus=[{"index": 0, **gpu}])
    assert len(await told()) == 8
    async with own_world.database.transaction() as store:
        await store.nodes.set_state(node_id, frozenset({NodeState.READY}), NodeState.LOST)
    assert await told() == []
