"""Nodes as loading and moving see them: rows to `domain.loading.Host`."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from uuid import UUID

from vyvo_dagster.domain.loading import Host, reserve
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.store.demand import InForce
from vyvo_dagster.store.records import Node

__all__ = ["hosts_of", "largest_gpu"]

# States in which a heartbeat does not show yet what the version will take.
_LOADING = frozenset({AssignmentState.REQUESTED, AssignmentState.PULLING, AssignmentState.LOADING})


def hosts_of(nodes: Mapping[UUID, Node], in_force: Iterable[InForce]) -> list[Host]:
    """Every node with what is free there once all that is being loaded is loaded."""
    loads: defaultdict[UUID, list[int]] = defaultdict(list)
    counts: Counter[UUID] = Counter()
    for each in in_force:
        counts[each.node_id] += 1
        if each.state in _LOADING:
            loads[each.node_id].append(each.gpu_memory_bytes)
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


def largest_gpu(node: Node) -> int:
    """Memory of a node's largest GPU, in bytes; 0 where it has none."""
    return max((int(g["memory_total_bytes"]) for g in node.metrics.get("gpus", ())), default=0)


def _free_by_gpu(node: Node) -> list[int]:
    return [
        int(gpu["memory_total_bytes"]) - int(gpu["memory_used_bytes"])
        for gpu in node.metrics.get("gpus", ())
    ]
