"""/api/audit: who did what, for admins."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.audit.schemas import AuditView, audit_view
from api.auth import IsAdmin
from api.context import Ctx
from api.fields import Cursor, Limit, Listing, Text, listing

__all__ = ["router"]

router = APIRouter(prefix="/api/audit", tags=["audit"])


@router.get("", summary="List what was done")
async def browse(
    _: IsAdmin, context: Ctx, cursor: Cursor = None, limit: Limit = 50,
    action: Annotated[Text | None, Query(max_length=100, description="Such as `promote`.")] = None,
    subject: Annotated[
        Text | None, Query(max_length=4096, description="What it was done to: an id or a name.")
    ] = None,
    key_prefix: Annotated[
        Text | None, Query(max_length=300, description="Of the key that did it.")
    ] = None,
) -> Listing[AuditView]:  # fmt: skip
    """Newest first. An entry is written in the transaction of what it tells of, and never changed."""
    async with context.database.transaction() as store:
        found = await store.audit.browse(
            cursor, limit, action=action, subject=subject, key_prefix=key_prefix
        )
    shown, next_cursor = listing(found, limit)
    return Listing(items=[audit_view(e) for e in shown], next_cursor=next_cursor)
