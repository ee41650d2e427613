"""/api/builds."""

from collections.abc import AsyncGenerator
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse

from api import sse
from api.auth import BuildsRead, BuildsWrite
from api.builds import again, logs, service
from api.builds.schemas import BuildAccepted, BuildRequest, BuildView, LogView, build_view
from api.context import Context, Ctx
from api.fields import Cursor, Limit, Listing, listing
from api.idempotency import OnceDep
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.model import parse_model_id
from vyvo_dagster.store.records import Build

__all__ = ["router"]

router = APIRouter(prefix="/api/builds", tags=["builds"])

_CYCLONEDX: Final = "application/vnd.cyclonedx+json"


@router.post("", status_code=202, summary="Queue a build of a runner image")
async def submit(
    body: BuildRequest, principal: BuildsWrite, context: Ctx, once: OnceDep
) -> BuildAccepted:
    """Makes the version, builds its runner image and registers it. Follow the build's log by SSE."""
    return await service.submit(context, principal, body, once)


@router.get("", summary="List builds")
async def browse(
    principal: BuildsRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50,
    status: BuildState | None = None, model_id: str | None = None,
) -> Listing[BuildView]:  # fmt: skip
    """Newest first. A key that is no admin's sees its own tenant's builds."""
    if model_id is not None:
        parse_model_id(model_id)
    async with context.database.transaction() as store:
        found = await store.builds.browse(principal.sees, cursor, limit, status, model_id)
    shown, next_cursor = listing(found, limit)
    return Listing(items=[build_view(b) for b in shown], next_cursor=next_cursor)


@router.get("/{build_id}", summary="Get a build with a slice of its log")
async def get(
    build_id: UUID, principal: BuildsRead, context: Ctx,
    log_offset: Annotated[int, Query(ge=0, description="Lines to pass over.")] = 0,
    log_limit: Annotated[int, Query(ge=0, le=1000, description="Lines to give; 0 for none.")] = 100,
) -> BuildView:  # fmt: skip
    """`log.next_offset` is where the next slice begins."""
    async with context.database.transaction() as store:
        build = await service.find(store, principal, build_id)
    log = await logs.slice_of(context, build, log_offset, log_limit) if log_limit else None
    return build_view(build, log)


@router.get(
    "/{build_id}/lock", summary="Get the lock of a build", response_class=Response,
    responses={200: {"description": "Every package, by hash.", "content": {"text/plain": {}}}},
)  # fmt: skip
async def lock(build_id: UUID, principal: BuildsRead, context: Ctx) -> Response:
    """A requirements file for pip and uv. 404 until the build has one."""
    async with context.database.transaction() as store:
        build = await service.find(store, principal, build_id)
    text = await service.paper(context, build.lock_url, "lock")
    return Response(text, media_type="text/plain; charset=utf-8")


@router.get(
    "/{build_id}/sbom", summary="Get a build's bill of materials", response_class=Response,
    responses={200: {"description": "CycloneDX 1.6.", "content": {_CYCLONEDX: {}}}},
)  # fmt: skip
async def sbom(build_id: UUID, principal: BuildsRead, context: Ctx) -> Response:
    """Wheels, base image and source, each by its hash. 404 until the build has one."""
    async with context.database.transaction() as store:
        build = await service.find(store, principal, build_id)
    return Response(await service.paper(context, build.sbom_url, "SBOM"), media_type=_CYCLONEDX)


@router.post("/{build_id}/cancel", summary="Cancel a build")
async def cancel(build_id: UUID, principal: BuildsWrite, context: Ctx) -> BuildView:
    """A repeat changes nothing; a build that has ended otherwise answers 409."""
    return build_view(await service.cancel(context, principal, build_id))


@router.post("/{build_id}/retry", status_code=202, summary="Build again what did not succeed")
async def retry(
    build_id: UUID, principal: BuildsWrite, context: Ctx, once: OnceDep
) -> BuildAccepted:
    """A new build of what a failed or canceled one asked for."""
    return await again.retry(context, principal, build_id, once)


@router.get(
    "/{build_id}/logs", summary="Follow a build's log", response_class=Response,
    responses={
        200: {
            "description": "SSE events `log` {n, t, step, text, fields} and last `end` {status}, ids are "
            "line numbers; or the same lines as text.",
            "content": {"text/event-stream": {}, "text/plain": {}},
        }
    },
)  # fmt: skip
async def follow(
    build_id: UUID, principal: BuildsRead, context: Ctx,
    accept: Annotated[str, Header()] = "*/*", last_event_id: sse.LastEventId = None,
) -> Response:  # fmt: skip
    """`Accept: text/event-stream` streams events, anything else plain text; both until the build ends."""
    async with context.database.transaction() as store:
        build = await service.find(store, principal, build_id)
    if "text/event-stream" in accept:
        after = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
        return sse.event_stream(
            "builds.logs", sse.until(context.stopping, _events(context, build, after))
        )
    lines = sse.until(context.stopping, _lines(context, build))
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8")


async def _events(context: Context, build: Build, after: int) -> AsyncGenerator[str]:
    async for item in logs.follow(context, build, after):
        if item is None:
            yield sse.KEEP_ALIVE
        elif isinstance(item, LogView):
            # The bytes of the stored log: the same members, in the same order.
            yield sse.frame("log", item.model_dump(exclude_none=True), str(item.n))
        else:
            yield sse.frame("end", {"status": str(item)})


async def _lines(context: Context, build: Build) -> AsyncGenerator[str]:
    async for item in logs.follow(context, build, 0):
        if isinstance(item, LogView):
            yield f"[{item.step}] {item.text}\n" if item.step else f"{item.text}\n"
