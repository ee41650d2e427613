"""/api/nodes: agents join and report, operators load versions and take nodes out."""

from collections import defaultdict
from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.auth import IsBeatingNode, IsNode, NodesRead, NodesWrite, own_node
from api.context import Ctx
from api.fields import Cursor, Limit, Listing, listing
from api.idempotency import OnceDep, once
from api.nodes import credentials, join, reports, service
from api.nodes import heartbeat as heartbeats
from api.nodes.schemas import (
    AssignmentView,
    AssignRequest,
    DrainRequest,
    NodeEventView,
    NodeMetricsView,
    NodeView,
    assignment_view,
    event_view,
    node_view,
)
from vyvo_dagster.domain.node import NodeEventKind, NodeState
from vyvo_dagster.protocol.job import ReportBatch, ReportBatchAnswer
from vyvo_dagster.protocol.node import (
    AssignmentCredentials,
    CredentialAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Register,
    RegisterAnswer,
)
from vyvo_dagster.store.records import Assignment

__all__ = ["router"]

router = APIRouter(prefix="/api/nodes", tags=["nodes"])


@router.post("/register", summary="Join a node")
async def register(body: Register, holder: join.Joiner, context: Ctx) -> RegisterAnswer:
    """By the join token, which gives the node a new credential, or by the node's own credential."""
    return await join.register(context, holder, body)


@router.post(
    "/{node_id}/heartbeat", summary="Report a node and learn what it should run",
    response_model=HeartbeatAnswer,
)  # fmt: skip
async def heartbeat(
    node_id: UUID, body: Heartbeat, principal: IsBeatingNode, context: Ctx
) -> Response:
    """By the node's own credential. 409 `stale_boot` asks the agent to join again."""
    own_node(principal, node_id)
    answer = await heartbeats.heartbeat(context, node_id, principal.key_id, body)
    return Response(answer, media_type="application/json")


@router.post("/{node_id}/reports", summary="Report many attempts at a time")
async def report(
    node_id: UUID, body: ReportBatch, principal: IsNode, context: Ctx
) -> ReportBatchAnswer:
    """By the node's own credential: progress and ends, as the single routes take them, in order.

    Each item gets its own result. One that cannot be used hurts no other, and the attempt that it
    was to end has failed with the code `invalid_report`.
    """
    return await reports.take(context.reports, own_node(principal, node_id), body)


@router.post("/{node_id}/credential", summary="Replace a node's credential")
async def replace_credential(
    node_id: UUID, principal: IsNode, context: Ctx, response: Response
) -> CredentialAnswer:
    """By the node's own credential, which stays good for a day."""
    response.headers["Cache-Control"] = "no-store"
    return await join.replace_credential(context, principal, own_node(principal, node_id))


@router.post(
    "/{node_id}/assignments/{assignment_id}/credentials",
    summary="Get what a node needs to pull an image",
)
async def assignment_credentials(
    node_id: UUID, assignment_id: UUID, principal: IsNode, context: Ctx, response: Response
) -> AssignmentCredentials:
    """By the node's own credential, for an assignment of its own. Good for some minutes."""
    response.headers["Cache-Control"] = "no-store"
    node = own_node(principal, node_id)
    return await credentials.for_assignment(context, principal, node, assignment_id)


@router.get("", summary="List nodes")
async def browse(
    _: NodesRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50,
    state: NodeState | None = None,
    name: Annotated[str | None, Query(max_length=255, description="Only the one of this name.")] = None,
) -> Listing[NodeView]:  # fmt: skip
    """Newest first, each with its assignments in force."""
    async with context.database.transaction() as store:
        found = await store.nodes.browse(cursor, limit, state, name)
        shown, next_cursor = listing(found, limit)
        by_node: defaultdict[UUID, list[Assignment]] = defaultdict(list)
        for assignment in await store.assignments.of_nodes([n.id for n in shown]):
            by_node[assignment.node_id].append(assignment)
        left = await store.moves.counts([n.id for n in shown if n.draining])
    return Listing(
        items=[node_view(n, by_node[n.id], left.get(n.id)) for n in shown], next_cursor=next_cursor
    )


@router.get("/{node_id}", summary="Get a node")
async def get(node_id: UUID, _: NodesRead, context: Ctx) -> NodeView:
    """One node with its assignments in force."""
    async with context.database.transaction() as store:
        return await service.shown(store, node_id)


@router.get("/{node_id}/events", summary="List a node's history")
async def events(
    node_id: UUID, _: NodesRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50
) -> Listing[NodeEventView]:
    """Newest first."""
    async with context.database.transaction() as store:
        await service.find(store, node_id)
        found = await store.nodes.events(node_id, cursor, limit)
    shown, next_cursor = listing(found, limit)
    return Listing(items=[event_view(e) for e in shown], next_cursor=next_cursor)


@router.get("/{node_id}/metrics", summary="Get a node's last figures")
async def metrics(node_id: UUID, _: NodesRead, context: Ctx) -> NodeMetricsView:
    """What the last heartbeat said of memory, GPUs and running attempts."""
    async with context.database.transaction() as store:
        node = await service.find(store, node_id)
    return NodeMetricsView(
        node_id=node.id, received_at=node.last_heartbeat_at,
        memory_available_bytes=node.metrics.get("memory_available_bytes", 0),
        gpus=node.metrics.get("gpus", []), running=node.metrics.get("running", []),
    )  # fmt: skip


@router.post("/{node_id}/assign", status_code=202, summary="Load a version on a node")
async def assign(
    node_id: UUID, body: AssignRequest, principal: NodesWrite, context: Ctx, request: OnceDep
) -> AssignmentView:
    """The agent fetches the weights, starts the runner, and reports the assignment ready."""
    async with context.database.transaction() as store:

        async def write() -> AssignmentView:
            return assignment_view(await service.assign(store, principal, node_id, body))

        answer, _ = await once(store, principal.tenant, request, AssignmentView, write)
    context.relay.kick()
    return answer


@router.delete(
    "/{node_id}/assignments/{assignment_id}",
    status_code=202,
    summary="Unload a version from a node",
)
async def remove(
    node_id: UUID, assignment_id: UUID, principal: NodesWrite, context: Ctx
) -> AssignmentView:
    """The agent stops the runner once what it runs has ended. A repeat changes nothing."""
    return assignment_view(await service.remove(context, principal, node_id, assignment_id))


@router.post("/{node_id}/cordon", summary="Give a node no new jobs")
async def cordon(node_id: UUID, principal: NodesWrite, context: Ctx) -> NodeView:
    """What runs there goes on."""
    return await service.set_flags(
        context, principal, node_id, NodeEventKind.CORDONED, cordoned=True
    )


@router.post("/{node_id}/uncordon", summary="Give a node jobs again")
async def uncordon(node_id: UUID, principal: NodesWrite, context: Ctx) -> NodeView:
    """Ends a drain too; models that have moved stay where they are."""
    return await service.set_flags(
        context, principal, node_id, NodeEventKind.UNCORDONED, cordoned=False, draining=False
    )


@router.post("/{node_id}/drain", summary="Drain a node")
async def drain(
    node_id: UUID, principal: NodesWrite, context: Ctx, body: DrainRequest | None = None
) -> NodeView:
    """No new jobs; what runs there ends in its own time, or at the deadline; its models move.

    `drain` of the node says how far it is. A repeat begins anew, with another deadline. At the
    deadline jobs go back to the queue, uncharged, and their attempts say `drain_deadline`.
    """
    seconds = None if body is None else body.deadline_seconds
    deadline = None if seconds is None else timedelta(seconds=seconds)
    return await service.drain(context, principal, node_id, deadline)
