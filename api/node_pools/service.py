"""Pools: written, scaled, deleted."""

from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

from uuid_utils.compat import uuid7

from api.auth import Principal
from api.context import Context
from api.idempotency import Once, once
from api.node_pools.schemas import (
    OperationView,
    PoolBody,
    PoolView,
    ScaleRequest,
    operation_view,
    pool_view,
)
from vyvo_dagster.domain.model import parse_model_id
from vyvo_dagster.domain.pool import ScalerKind, check_size, parse_pool_name
from vyvo_dagster.errors import Conflict, NotFound
from vyvo_dagster.scaling.policy import outlook
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.pools import Pool

__all__ = ["delete", "find", "operation", "put", "scale", "view"]


async def find(store: Store, name: str, *, lock: bool = False) -> Pool:
    """A pool, else NotFound."""
    pool = await store.pools.get(parse_pool_name(name), lock=lock)
    if pool is None:
        raise NotFound(f"no node pool {name}")
    return pool


async def view(store: Store, pool: Pool) -> PoolView:
    """A pool as it is shown, with what its policy would do."""
    seen = await outlook(store, pool, datetime.now(UTC))
    return pool_view(pool, seen.members, seen.waiting, seen.decision)


async def put(context: Context, principal: Principal, name: str, body: PoolBody) -> PoolView:
    """Make a pool, or change all of one but its nodes.

    Raises:
        ScalingRefused: this installation has no such scaler.
        Conflict: another kind of scaler has its nodes, or an operation is under way.
    """
    parse_pool_name(name)
    for model in body.models:
        parse_model_id(model)
    kind = ScalerKind(body.scaler.kind)
    context.pools.check(kind)
    config = body.scaler.model_dump(mode="json", exclude={"kind"})
    async with context.database.transaction() as store:
        before = await store.pools.get(name, lock=True)
        if before is not None and await store.pools.under_way(before.id):
            raise Conflict(f"an operation of node pool {name} is under way; wait for its end")
        if before is not None and before.members and before.scaler is not kind:
            raise Conflict(f"node pool {name} has nodes of {before.scaler}; scale it to 0 first")
        if module := config.get("module"):
            for other in await store.pools.all():
                if other.name != name and other.config.get("module") == module:
                    # One module has one state: two pools would remove each other's nodes.
                    raise Conflict(f"node pool {other.name} has the module {module} already")
        host = context.pools.host if kind is ScalerKind.LOCAL else None
        if before is not None and before.members and before.host != host:
            raise Conflict(f"node pool {name} has its nodes on {before.host}; ask the api there")
        pool = await store.pools.put(
            id=uuid7(), name=name, scaler=kind, config=config, host=host, models=body.models,
            **body.model_dump(exclude={"scaler", "models"}),
        )  # fmt: skip
        await _audit(store, principal, "put_pool", pool, body.model_dump(mode="json"))
        return await view(store, pool)


async def delete(context: Context, principal: Principal, name: str) -> None:
    """Delete a pool without nodes, and its history.

    Raises:
        Conflict: it has nodes, or an operation is under way.
    """
    async with context.database.transaction() as store:
        pool = await find(store, name, lock=True)
        if await store.pools.under_way(pool.id):
            raise Conflict(f"an operation of node pool {name} is under way; wait for its end")
        if pool.members:
            raise Conflict(f"node pool {name} has {len(pool.members)} nodes; scale it to 0 first")
        await store.pools.delete(pool.id)
        await _audit(store, principal, "delete_pool", pool, {})


async def scale(
    context: Context, principal: Principal, body: ScaleRequest, request: Once
) -> OperationView:
    """Queue a change of size.

    Raises:
        InvalidInput: the pool may not have that size.
        Conflict: an operation is under way.
    """
    async with context.database.transaction() as store:

        async def write() -> OperationView:
            pool = await find(store, body.pool, lock=True)
            context.pools.check(pool.scaler)
            size = len(pool.members) + (body.delta or 0) if body.size is None else body.size
            made = await store.pools.add_operation(
                pool, id=uuid7(), size=check_size(pool.policy, size), dry_run=body.dry_run,
                reason="as asked", requested_by=principal.prefix,
            )  # fmt: skip
            if made is None:
                raise Conflict(
                    f"an operation of node pool {pool.name} is under way; wait for its end"
                )
            detail = {"size": size, "dry_run": body.dry_run, "operation_id": str(made.id)}
            await _audit(store, principal, "scale", pool, detail)
            return operation_view(pool.name, made)

        answer, _ = await once(store, principal.tenant, request, OperationView, write)
    context.pools.kick()
    return answer


async def operation(context: Context, name: str, id: UUID, log_offset: int) -> OperationView:
    """One operation, else NotFound."""
    async with context.database.transaction() as store:
        pool = await find(store, name)
        found = await store.pools.operation(pool.id, id)
    if found is None:
        raise NotFound(f"no such operation of node pool {name}")
    return operation_view(name, found, log_offset)


async def _audit(
    store: Store, principal: Principal, action: str, pool: Pool, detail: Mapping[str, object]
) -> None:
    await store.keys.audit(
        id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action=action,
        subject=pool.name, detail=detail,
    )  # fmt: skip
