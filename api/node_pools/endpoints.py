"""/api/node-pools: how many nodes there are, and who makes them."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.auth import NodesRead, NodesWrite
from api.context import Ctx
from api.fields import Cursor, Limit, Listing, listing
from api.idempotency import OnceDep
from api.node_pools import service
from api.node_pools.schemas import OperationView, PoolBody, PoolView, ScaleRequest, operation_view

__all__ = ["router"]

router = APIRouter(prefix="/api/node-pools", tags=["node pools"])

LogOffset = Annotated[
    int, Query(ge=0, le=1 << 20, description="Characters of the log to leave out.")
]


@router.get("", summary="List node pools")
async def browse(
    _: NodesRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50
) -> Listing[PoolView]:
    """Newest first, each with its nodes and what its policy would do now."""
    async with context.database.transaction() as store:
        shown, next_cursor = listing(await store.pools.browse(cursor, limit), limit)
        items = [await service.view(store, pool) for pool in shown]
    return Listing(items=items, next_cursor=next_cursor)


@router.post("/scale", status_code=202, summary="Change a node pool's size")
async def scale(
    body: ScaleRequest, principal: NodesWrite, context: Ctx, request: OnceDep
) -> OperationView:
    """Queues an operation. Nodes that leave are cordoned and drained first, idle ones before others."""
    return await service.scale(context, principal, body, request)


@router.get("/{name}", summary="Get a node pool")
async def get(name: str, _: NodesRead, context: Ctx) -> PoolView:
    """One pool with its nodes, and what its policy would do now."""
    async with context.database.transaction() as store:
        return await service.view(store, await service.find(store, name))


@router.put("/{name}", summary="Make or change a node pool")
async def put(name: str, body: PoolBody, principal: NodesWrite, context: Ctx) -> PoolView:
    """All of it is replaced but its nodes. A `local` pool belongs to the machine of this api."""
    return await service.put(context, principal, name, body)


@router.delete("/{name}", status_code=204, summary="Delete a node pool")
async def delete(name: str, principal: NodesWrite, context: Ctx) -> None:
    """One without nodes, and its history."""
    await service.delete(context, principal, name)


@router.get("/{name}/operations", summary="List a node pool's operations")
async def operations(
    name: str, _: NodesRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50
) -> Listing[OperationView]:
    """Newest first, without their logs."""
    async with context.database.transaction() as store:
        pool = await service.find(store, name)
        found = await store.pools.operations(pool.id, cursor, limit)
    shown, next_cursor = listing(found, limit)
    return Listing(items=[operation_view(name, o) for o in shown], next_cursor=next_cursor)


@router.get("/{name}/operations/{operation_id}", summary="Get an operation of a node pool")
async def operation(
    name: str, operation_id: UUID, _: NodesRead, context: Ctx, log_offset: LogOffset = 0
) -> OperationView:
    """Its state, its plan, and its log from `log_offset` on; ask again to follow it."""
    return await service.operation(context, name, operation_id, log_offset)
