"""/api/queue: what waits, and the weights by which tenants share slots."""

from typing import Annotated

from fastapi import APIRouter, Query
from uuid_utils.compat import uuid7

from api.auth import IsAdmin, JobsRead
from api.context import Ctx
from api.queue.schemas import Queue, QueueView, Tenant, WeightPut, Weights, WeightView, weight_view
from vyvo_dagster.domain.fairness import Weighing
from vyvo_dagster.domain.model import parse_model_id
from vyvo_dagster.errors import NotFound

__all__ = ["router"]

router = APIRouter(prefix="/api/queue", tags=["queue"])

ModelFilter = Annotated[str | None, Query(description="Of this model only.")]


@router.get("", summary="What waits")
async def view(
    principal: JobsRead, context: Ctx, model_id: ModelFilter = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Queues to show.")] = 200,
) -> QueueView:  # fmt: skip
    """One item for each version, class and tenant with jobs. A key that is no admin's sees its own tenant's."""
    if model_id is not None:
        parse_model_id(model_id)
    async with context.database.transaction() as store:
        found = await store.shares.queues(principal.sees, model_id, limit + 1)
        shares = await store.shares.all()
    weighing = Weighing({(s.tenant, s.model_id): s.weight for s in shares})
    return QueueView(
        items=[
            Queue(
                model_id=q.model_id, version=q.version, priority=q.priority, tenant=q.tenant,
                depth=q.depth, oldest_seconds=q.oldest_seconds, in_flight=q.in_flight,
                weight=weighing.weight(q.tenant, q.model_id),
            )
            for q in found[:limit]
        ],
        truncated=len(found) > limit,
    )  # fmt: skip


@router.get("/weights", summary="List weights")
async def weights(_: IsAdmin, context: Ctx) -> Weights:
    """Those that were set; a tenant that has none weighs 1."""
    async with context.database.transaction() as store:
        return Weights(items=[weight_view(s) for s in await store.shares.all()])


@router.put("/weights", summary="Set a weight")
async def put_weight(body: WeightPut, principal: IsAdmin, context: Ctx) -> WeightView:
    """For one model, or for all that have none of their own. In force from the next turn of dispatch."""
    if body.model_id is not None:
        parse_model_id(body.model_id)
    async with context.database.transaction() as store:
        if body.model_id is not None and await store.models.get(body.model_id) is None:
            raise NotFound(f"no model {body.model_id}")
        share = await store.shares.put(uuid7(), body.tenant, body.model_id, body.weight)
        await store.keys.audit(
            id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action="weight_set",
            subject=body.tenant, detail={"model_id": body.model_id, "weight": body.weight},
        )  # fmt: skip
    context.registry.drop()
    return weight_view(share)


@router.delete("/weights", status_code=204, summary="Forget a weight")
async def delete_weight(
    tenant: Annotated[Tenant, Query()], principal: IsAdmin, context: Ctx,
    model_id: Annotated[str | None, Query(description="Unset: the one for all models.")] = None,
) -> None:  # fmt: skip
    """The tenant weighs as for all models then, or 1."""
    if model_id is not None:
        parse_model_id(model_id)
    async with context.database.transaction() as store:
        if not await store.shares.delete(tenant, model_id):
            raise NotFound("no such weight")
        await store.keys.audit(
            id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix,
            action="weight_delete", subject=tenant, detail={"model_id": model_id},
        )  # fmt: skip
    context.registry.drop()
