"""/api/keys: API keys, for admins."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from uuid import UUID

from fastapi import APIRouter
from uuid_utils.compat import uuid7

from api.auth import IsAdmin
from api.context import Ctx
from api.fields import Cursor, Limit, Listing, listing
from api.keys.schemas import KeyChange, KeyCreate, KeyCreated, KeyView, key_view
from vyvo_dagster.errors import NotFound
from vyvo_dagster.security.keys import TokenKind, mint

__all__ = ["router"]

router = APIRouter(prefix="/api/keys", tags=["keys"])


@router.post("", status_code=201, summary="Make an API key")
async def create(body: KeyCreate, principal: IsAdmin, context: Ctx) -> KeyCreated:
    """The key is in this answer and nowhere else, which is why no Idempotency-Key is taken here."""
    token = mint(TokenKind.KEY)
    expires_at = None
    if body.expires_in_seconds is not None:
        expires_at = datetime.now(UTC) + timedelta(seconds=body.expires_in_seconds)
    async with context.database.transaction() as store:
        key = await store.keys.add(
            id=uuid7(), prefix=token.prefix, secret_sha256=token.digest, name=body.name,
            tenant=body.tenant, scopes=body.scopes, expires_at=expires_at, limits=body.limits.kept(),
        )  # fmt: skip
        await store.keys.audit(
            id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action="key_create",
            subject=token.prefix, detail={"tenant": body.tenant, "scopes": sorted(body.scopes)},
        )  # fmt: skip
    return KeyCreated(**key_view(key).model_dump(), key=token.text)


@router.get("", summary="List API keys")
async def browse(
    _: IsAdmin, context: Ctx, cursor: Cursor = None, limit: Limit = 50
) -> Listing[KeyView]:
    """Newest first, without secrets; credentials of nodes are not among them."""
    async with context.database.transaction() as store:
        found = await store.keys.browse(cursor, limit)
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
        await store.keys.audit(
            id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action="key_change",
            subject=str(key_id), detail=asdict(limits),
        )  # fmt: skip
    context.authenticator.forget(key_id=key_id)
    return key_view(key)


@router.delete("/{key_id}", status_code=204, summary="Revoke an API key")
async def revoke(key_id: UUID, principal: IsAdmin, context: Ctx) -> None:
    """Here at once; other api processes take it for at most 5 s more. A repeat changes nothing."""
    async with context.database.transaction() as store:
        if not await store.keys.revoke(key_id):
            raise NotFound("no such key")
        await store.keys.audit(
            id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action="key_revoke",
            subject=str(key_id),
        )  # fmt: skip
    context.authenticator.forget(key_id=key_id)
