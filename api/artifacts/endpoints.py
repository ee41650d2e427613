"""/api/artifacts: what jobs made."""

from uuid import UUID

from fastapi import APIRouter

from api.artifacts.schemas import ArtifactView, artifact_view
from api.auth import ArtifactsRead
from api.context import Ctx
from api.fields import Cursor, Limit, Listing, listing
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import NotFound

__all__ = ["router"]

router = APIRouter(prefix="/api/artifacts", tags=["artifacts"])


@router.get("", summary="List artifacts")
async def browse(
    principal: ArtifactsRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50,
    type: Modality | None = None,
) -> Listing[ArtifactView]:  # fmt: skip
    """Newest first. A key that is no admin's sees its own tenant's."""
    async with context.database.transaction() as store:
        found = await store.artifacts.browse(principal.sees, cursor, limit, type)
    shown, next_cursor = listing(found, limit)
    seconds = context.settings.presign_seconds
    items = [artifact_view(a, context.objects, seconds) for a in shown]
    return Listing(items=items, next_cursor=next_cursor)


@router.get("/{artifact_id}", summary="Get an artifact")
async def get(artifact_id: UUID, principal: ArtifactsRead, context: Ctx) -> ArtifactView:
    """Its metadata, and a URL that reads it."""
    async with context.database.transaction() as store:
        found = await store.artifacts.get(artifact_id, principal.sees)
    if found is None:
        raise NotFound("no such artifact")
    return artifact_view(found, context.objects, context.settings.presign_seconds)
