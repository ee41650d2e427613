"""What operators ask of nodes: load a version, remove it, cordon, drain."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from api.auth import Principal
from api.context import Context
from api.nodes.schemas import AssignRequest, NodeView, node_view
from vyvo_dagster.domain.model import VersionState, parse_model_id, parse_version
from vyvo_dagster.domain.node import AssignmentState, NodeEventKind
from vyvo_dagster.errors import Conflict, InvalidWeightsUri, NotFound
from vyvo_dagster.protocol.job import OrderKind
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Assignment, ModelVersion, Node
from vyvo_dagster.streams import keys

__all__ = ["assign", "drain", "find", "remove", "set_flags", "shown"]

_SERVABLE = (VersionState.READY, VersionState.ACTIVE)


async def find(store: Store, node_id: UUID) -> Node:
    """A node, else NotFound."""
    node = await store.nodes.get(node_id)
    if node is None:
        raise NotFound("no such node")
    return node


async def assign(
    store: Store, principal: Principal, node_id: UUID, body: AssignRequest
) -> Assignment:
    """Ask for a version on a node; one that is asked for already is given back as it is.

    Raises:
        Conflict: the version is not ready, or needs more GPU memory than any GPU there has.
        InvalidWeightsUri: weights other than the version's were named.
    """
    parse_model_id(body.model_id)
    node = await find(store, node_id)
    version = await _version(store, body)
    if version.state not in _SERVABLE or version.runner_image is None:
        raise Conflict(
            f"{body.model_id}@{version.version} is {version.state}; only a ready version can be assigned"
        )
    if body.weights_uri is not None and body.weights_uri not in {
        version.weights_uri, version.weights_url
    }:  # fmt: skip
        raise InvalidWeightsUri(
            f"weights_uri is not that of {body.model_id}@{version.version}; leave it out, or build a version with it"
        )
    _check_memory(node, version)
    assignment = await store.assignments.request(id=uuid7(), node_id=node_id, version_id=version.id)
    if assignment.state is not AssignmentState.REQUESTED:
        return assignment
    await store.nodes.add_event(
        id=uuid7(), node_id=node_id, kind=NodeEventKind.ASSIGNED,
        detail={"assignment_id": str(assignment.id), "model_id": version.model_id,
                "version": version.version, "by": principal.prefix},
    )  # fmt: skip
    await _sync(store, node_id)
    await _audit(store, principal, "assign", node_id, {"assignment_id": str(assignment.id)})
    return assignment


async def remove(
    context: Context, principal: Principal, node_id: UUID, assignment_id: UUID
) -> Assignment:
    """Ask for an assignment's removal; a repeat changes nothing."""
    async with context.database.transaction() as store:
        await find(store, node_id)
        before = await store.assignments.get(node_id, assignment_id)
        removed = await store.assignments.remove(node_id, assignment_id)
        if removed is None:
            raise NotFound("no such assignment on this node")
        if before is not None and before.state is not removed.state:
            await store.nodes.add_event(
                id=uuid7(), node_id=node_id, kind=NodeEventKind.UNASSIGNED,
                detail={"assignment_id": str(assignment_id), "model_id": removed.model_id,
                        "version": removed.version, "by": principal.prefix},
            )  # fmt: skip
        await _sync(store, node_id)
        await _audit(store, principal, "unassign", node_id, {"assignment_id": str(assignment_id)})
    context.registry.drop()
    context.relay.kick()
    return removed


async def set_flags(
    context: Context, principal: Principal, node_id: UUID, kind: NodeEventKind, **flags: bool
) -> NodeView:
    """Set cordoned or draining, and tell dispatch."""
    async with context.database.transaction() as store:
        if not await store.nodes.set_flags(node_id, **flags):
            raise NotFound("no such node")
        await store.nodes.add_event(
            id=uuid7(), node_id=node_id, kind=kind, detail={"by": principal.prefix}
        )
        await _audit(store, principal, str(kind), node_id, flags)
        view = await shown(store, node_id)
    context.announcer.wake()
    return view


async def drain(
    context: Context, principal: Principal, node_id: UUID, deadline: timedelta | None
) -> NodeView:
    """Cordon a node and let it end its jobs, for as long as the deadline says; its models move."""
    seconds = None if deadline is None else deadline.total_seconds()
    async with context.database.transaction() as store:
        if not await store.nodes.set_flags(node_id, cordoned=True, draining=True):
            raise NotFound("no such node")
        await store.nodes.set_deadline(node_id, deadline)
        detail = {"by": principal.prefix, "deadline_seconds": seconds}
        await store.nodes.add_event(
            id=uuid7(), node_id=node_id, kind=NodeEventKind.DRAINING, detail=detail
        )
        await _audit(store, principal, "drain", node_id, {"deadline_seconds": seconds})
        view = await shown(store, node_id)
    context.announcer.wake()
    return view


async def shown(store: Store, node_id: UUID) -> NodeView:
    """One node as it is shown, else NotFound."""
    node = await find(store, node_id)
    left = await store.moves.counts([node_id]) if node.draining else {}
    return node_view(node, await store.assignments.of_node(node_id), left.get(node_id))


async def _version(store: Store, body: AssignRequest) -> ModelVersion:
    try:
        by_id = UUID(body.version_id)
    except ValueError:
        found = await store.models.version(body.model_id, parse_version(body.version_id))
    else:
        found = await store.models.version_by_id(by_id)
    if found is None or found.model_id != body.model_id:
        raise NotFound(f"no version {body.version_id} of {body.model_id}")
    return found


def _check_memory(node: Node, version: ModelVersion) -> None:
    needed = version.resources.get("gpu_memory_bytes", 0)
    usable = (g for g in node.capabilities.get("gpus", ()) if g.get("lost") is None)
    largest = max((g.get("memory_bytes", 0) for g in usable), default=0)
    if needed > largest:
        raise Conflict(
            f"{version.model_id}@{version.version} needs {needed} bytes of GPU memory; "
            f"the largest usable GPU of {node.name} has {largest}"
        )


async def _sync(store: Store, node_id: UUID) -> None:
    """Ask the agent for a heartbeat at once: the desired state changed."""
    await store.outbox.add(keys.node(node_id), {"kind": OrderKind.SYNC.value, "body": ""})


async def _audit(
    store: Store, principal: Principal, action: str, node_id: UUID, detail: Mapping[str, Any]
) -> None:
    await store.keys.audit(
        id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action=action,
        subject=str(node_id), detail=detail,
    )  # fmt: skip
