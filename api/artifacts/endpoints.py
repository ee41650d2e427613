"""/api/artifacts: what jobs made, and what becomes of it."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.artifacts import service
from api.artifacts.schemas import ArtifactView, SweepRequest, SweepView, artifact_view, sweep_view
from api.auth import ArtifactsRead, IsAdmin
from api.context import Ctx
from api.fields import Cursor, Limit, Listing, listing
from api.idempotency import OnceDep
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.domain.retention import ArtifactState
from vyvo_dagster.errors import InvalidInput, NotFound

__all__ = ["router"]

router = APIRouter(prefix="/api/artifacts", tags=["artifacts"])


@router.get("", summary="List artifacts")
async def browse(
    principal: ArtifactsRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50,
    type: Modality | None = None, job_id: UUID | None = None, state: ArtifactState | None = None,
) -> Listing[ArtifactView]:  # fmt: skip
    """Newest first. A key that is no admin's sees its own tenant's."""
    async with context.database.transaction() as store:
        found = await store.artifacts.browse(
            principal.sees, cursor, limit, type=type, job_id=job_id, state=state
        )
    shown, next_cursor = listing(found, limit)
    seconds = context.settings.presign_seconds
    items = [artifact_view(a, context.objects, seconds) for a in shown]
    return Listing(items=items, next_cursor=next_cursor)


@router.post("/sweeps", status_code=202, summary="Collect artifacts")
async def sweep(body: SweepRequest, principal: IsAdmin, context: Ctx, once: OnceDep) -> SweepView:
    """A Dagster run that expires artifacts, deletes objects without a row and finds rows without an object.

    It runs by itself too, by the hour and by the day.
    """
    return await service.ask_for_sweep(context, principal, body, once)


@router.get("/sweeps", summary="List passes that collect artifacts")
async def sweeps(
    principal: IsAdmin, context: Ctx, cursor: Cursor = None, limit: Limit = 50
) -> Listing[SweepView]:
    """Newest first, those of the schedules too; kept for 90 days."""
    async with context.database.transaction() as store:
        found = await store.retention.sweeps(cursor, limit)
    shown, next_cursor = listing(found, limit)
    return Listing(items=[sweep_view(s) for s in shown], next_cursor=next_cursor)


@router.get("/sweeps/{sweep_id}", summary="Get a pass that collects artifacts")
async def get_sweep(sweep_id: UUID, principal: IsAdmin, context: Ctx) -> SweepView:
    """With its report once it has ended."""
    return sweep_view(await service.find_sweep(context, sweep_id))


@router.get("/{artifact_id}", summary="Get an artifact")
async def get(
    artifact_id: UUID, principal: ArtifactsRead, context: Ctx,
    presign_seconds: Annotated[
        int | None, Query(ge=1, description="Life of the URL; the server's own is the most.")
    ] = None,
) -> ArtifactView:  # fmt: skip
    """Its metadata, and a URL that reads it, at most until it expires."""
    most = context.settings.presign_seconds
    if presign_seconds is not None and presign_seconds > most:
        raise InvalidInput(f"a URL lives for {most} s at most")
    async with context.database.transaction() as store:
        found = await store.artifacts.get(artifact_id, principal.sees)
    if found is None:
        raise NotFound("no such artifact")
    return artifact_view(found, context.objects, presign_seconds or most)
