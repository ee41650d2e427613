"""/api/models: the registry."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.audit.record import audit
from api.auth import ModelsRead, ModelsWrite, check_owner
from api.builds import again
from api.builds.schemas import BuildAccepted
from api.context import Ctx
from api.fields import Limit, Listing
from api.idempotency import OnceDep, once
from api.models import service
from api.models.paths import Name, Owner, Version
from api.models.schemas import (
    ModelCreate,
    ModelUpdate,
    ModelView,
    Promotion,
    VersionPut,
    VersionUpdate,
    VersionView,
    model_view,
    version_view,
)
from vyvo_dagster.domain.model import parse_model_id
from vyvo_dagster.errors import NotFound

__all__ = ["router"]

router = APIRouter(prefix="/api/models", tags=["models"])


@router.get("", summary="List models")
async def browse(
    _: ModelsRead, context: Ctx,
    cursor: Annotated[str | None, Query(max_length=200)] = None, limit: Limit = 50,
) -> Listing[ModelView]:  # fmt: skip
    """By model id; the cursor is the last id of the page before."""
    after = None if cursor is None else parse_model_id(cursor)
    async with context.database.transaction() as store:
        found = await store.models.browse(after, limit)
    items = [model_view(m) for m in found[:limit]]
    return Listing(items=items, next_cursor=items[-1].model_id if len(found) > limit else None)


@router.post("", status_code=201, summary="Register a model")
async def create(
    body: ModelCreate, principal: ModelsWrite, context: Ctx, request: OnceDep
) -> ModelView:
    """A model that exists already is given back as it is. A build registers its model by itself."""
    parse_model_id(body.model_id)
    async with context.database.transaction() as store:

        async def write() -> ModelView:
            known = await store.models.get(body.model_id)
            model = await store.models.ensure(body.model_id, principal.tenant, body.description)
            check_owner(principal, model.tenant, f"model {body.model_id}")
            if known is None:
                await audit(store, principal, "model_create", body.model_id)
            return model_view(model)

        answer, _ = await once(store, principal.tenant, request, ModelView, write)
    return answer


@router.get("/{owner}/{name}", summary="Get a model")
async def get(owner: Owner, name: Name, _: ModelsRead, context: Ctx) -> ModelView:
    """One model."""
    async with context.database.transaction() as store:
        return model_view(await service.find(store, f"{owner}/{name}"))


@router.patch("/{owner}/{name}", summary="Describe a model")
async def update(
    owner: Owner, name: Name, body: ModelUpdate, principal: ModelsWrite, context: Ctx
) -> ModelView:
    """Sets the description."""
    async with context.database.transaction() as store:
        model = await service.find(store, f"{owner}/{name}", principal)
        changed = await store.models.describe(model.model_id, body.description)
        await audit(store, principal, "model_describe", model.model_id)
    if changed is None:
        raise NotFound(f"no model {owner}/{name}")
    return model_view(changed)


@router.get("/{owner}/{name}/versions", summary="List a model's versions")
async def versions(owner: Owner, name: Name, _: ModelsRead, context: Ctx) -> Listing[VersionView]:
    """All versions, newest first."""
    async with context.database.transaction() as store:
        model = await service.find(store, f"{owner}/{name}")
        found = await store.models.versions(model.model_id)
    return Listing(items=[version_view(v) for v in found], next_cursor=None)


@router.get("/{owner}/{name}/versions/{version}", summary="Get a version")
async def get_version(
    owner: Owner, name: Name, version: Version, _: ModelsRead, context: Ctx
) -> VersionView:
    """One version: its image by digest, its weights by checksum, its input's schema."""
    async with context.database.transaction() as store:
        return version_view(await service.find_version(store, f"{owner}/{name}", version))


@router.put(
    "/{owner}/{name}/versions/{version}", summary="Register a version that was built elsewhere"
)
async def put_version(
    owner: Owner,
    name: Name,
    version: Version,
    body: VersionPut,
    principal: ModelsWrite,
    context: Ctx,
) -> VersionView:
    """Any Cog image serves as a runner. A repeat of the same body changes nothing."""
    return version_view(
        await service.put_version(context, principal, f"{owner}/{name}", version, body)
    )


@router.patch("/{owner}/{name}/versions/{version}", summary="Change or retire a version")
async def update_version(
    owner: Owner,
    name: Name,
    version: Version,
    body: VersionUpdate,
    principal: ModelsWrite,
    context: Ctx,
) -> VersionView:
    """A retired version gets no new jobs and no new assignments."""
    return version_view(
        await service.update_version(context, principal, f"{owner}/{name}", version, body)
    )


@router.post(
    "/{owner}/{name}/versions/{version}/rebuild", status_code=202,
    summary="Build a version once more",
)  # fmt: skip
async def rebuild(
    owner: Owner,
    name: Name,
    version: Version,
    principal: ModelsWrite,
    context: Ctx,
    request: OnceDep,
) -> BuildAccepted:
    """Of what it was built from: where that comes to the same digest nothing changes, else a version
    `<version>+<date>` is registered, ready. The version itself is immutable.
    """
    return await again.rebuild(context, principal, f"{owner}/{name}", version, request)


@router.post("/{owner}/{name}/promote", summary="Make a version the one that new jobs get")
async def promote(
    owner: Owner,
    name: Name,
    body: Promotion,
    principal: ModelsWrite,
    context: Ctx,
    request: OnceDep,
) -> VersionView:
    """The version that was active becomes ready again."""
    async with context.database.transaction() as store:

        async def write() -> VersionView:
            return version_view(
                await service.promote(store, principal, f"{owner}/{name}", body.version)
            )

        answer, _ = await once(store, principal.tenant, request, VersionView, write)
    context.registry.drop()
    return answer


@router.post("/{owner}/{name}/rollback", summary="Go back to the version that was active before")
async def rollback(
    owner: Owner, name: Name, principal: ModelsWrite, context: Ctx, request: OnceDep
) -> VersionView:
    """Again and again goes further back."""
    async with context.database.transaction() as store:

        async def write() -> VersionView:
            return version_view(await service.rollback(store, principal, f"{owner}/{name}"))

        answer, _ = await once(store, principal.tenant, request, VersionView, write)
    context.registry.drop()
    return answer
