"""/api/keys: API keys, for admins."""

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.audit.record import audit
from api.auth import IsAdmin
from api.context import Ctx
from api.fields import Cursor, Limit, Listing, listing
from api.keys import service
from api.keys.schemas import KeyChange, KeyCreate, KeyCreated, KeyRotate, KeyView, key_view
from vyvo_dagster.domain.tenant import TENANT
from vyvo_dagster.errors import NotFound

__all__ = ["router"]

router = APIRouter(prefix="/api/keys", tags=["keys"])


@router.post("", status_code=201, summary="Make an API key")
async def create(
    body: KeyCreate, principal: IsAdmin, context: Ctx, response: Response
) -> KeyCreated:
    """The key is in this answer and nowhere else, which is why no Idempotency-Key is taken here."""
    key, token = await service.create(context, principal, body)
    response.headers["Cache-Control"] = "no-store"
    return KeyCreated(**key_view(key).model_dump(), key=token.text)


@router.post("/{key_id}/rotate", status_code=201, summary="Replace an API key")
async def rotate(
    key_id: UUID, principal: IsAdmin, context: Ctx, response: Response,
    body: KeyRotate | None = None,
) -> KeyCreated:  # fmt: skip
    """A new key like this one, which goes on for a day, or for as long as `overlap_seconds` says.

    The new one is in this answer and nowhere else.
    """
    key, token = await service.rotate(context, principal, key_id, body or KeyRotate())
    response.headers["Cache-Control"] = "no-store"
    return KeyCreated(**key_view(key).model_dump(), key=token.text)


@router.get("", summary="List API keys")
async def browse(
    _: IsAdmin, context: Ctx, cursor: Cursor = None, limit: Limit = 50,
    prefix: Annotated[
        str | None,
        Query(pattern="^[0-9a-f]{1,8}$", description="What the keys' prefixes begin with."),
    ] = None,
    tenant: Annotated[str | None, Query(pattern=TENANT, description="Only of this tenant.")] = None,
) -> Listing[KeyView]:  # fmt: skip
    """Newest first, without secrets; credentials of nodes are not among them."""
    async with context.database.transaction() as store:
        found = await store.keys.browse(cursor, limit, prefix=prefix, tenant=tenant)
    shown, next_cursor = listing(found, limit)
    return Listing(items=[key_view(k) for k in shown], next_cursor=next_cursor)


@router.patch("/{key_id}", summary="Change an API key's limits")
async def change(key_id: UUID, body: KeyChange, principal: IsAdmin, context: Ctx) -> KeyView:
    """In force here at once, in other api processes after at most 5 s."""
    limits = body.limits.kept()
    async with context.database.transaction() as store:
        if await store.keys.get(key_id) is None:
            raise NotFound("no such key")
        key = await store.keys.set_limits(key_id, limits)
        await audit(store, principal, "key_change", str(key_id), asdict(limits))
    context.authenticator.forget(key_id=key_id)
    return key_view(key)


@router.delete("/{key_id}", status_code=204, summary="Revoke an API key")
async def revoke(key_id: UUID, principal: IsAdmin, context: Ctx) -> None:
    """Here at once; other api processes take it for at most 5 s more. A repeat changes nothing."""
    async with context.database.transaction() as store:
        if not await store.keys.revoke(key_id):
            raise NotFound("no such key")
        await audit(store, principal, "key_revoke", str(key_id))
    context.authenticator.forget(key_id=key_id)
