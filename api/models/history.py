"""What was done to a model, and how two of its versions differ."""

import asyncio
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api.auth import ModelsRead
from api.context import Context, Ctx
from api.fields import Cursor, Limit, Listing, listing
from api.models import service
from api.models.paths import Name, Owner
from vyvo_dagster.domain.version_diff import Changes, changes, locked_packages
from vyvo_dagster.errors import InvalidInput, NotFound, Unavailable
from vyvo_dagster.store.audit import AuditEntry
from vyvo_dagster.store.records import Build, ModelVersion

__all__ = ["router"]

router = APIRouter(prefix="/api/models", tags=["models"])

_LOCK_BYTES = 8 << 20
_COMPARED = (
    "template", "modality", "runner_image", "image_digest", "weights_uri", "weights_sha256",
)  # fmt: skip
_OF_BUILD = (
    "lock_sha256",
    "template_hash",
    "base_digest",
    "base_image",
    "repo",
    "source_commit",
    "backend_used",
)


class HistoryEntry(BaseModel):
    """One thing that was done. `by` is the prefix of the key."""

    id: UUID
    at: datetime
    by: str
    action: str = Field(examples=["promote"])
    version: str | None
    detail: dict[str, Any]


class ChangesView(BaseModel):
    """By name: what only the second has, what only the first has, and [first, second] of the rest."""

    added: dict[str, Any]
    removed: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]


class DiffView(BaseModel):
    """How `to` differs from `from_version`."""

    from_version: str
    to_version: str
    same: bool = Field(description="Whether nothing differs.")
    fields: dict[str, tuple[Any, Any]] = Field(
        description="Image, weights, template and what they were built from: [first, second]."
    )
    env: ChangesView = Field(description="Names only; values are not shown.")
    resources: ChangesView
    packages: ChangesView | None = Field(
        description="Of the locks; null where a version was not built here, or its lock has expired."
    )
    input_schema_changed: bool
    output_schema_changed: bool


@router.get("/{owner}/{name}/history", summary="What was done to a model")
async def history(
    owner: Owner, name: Name, _: ModelsRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50
) -> Listing[HistoryEntry]:
    """Builds asked for, versions registered, changed, promoted, rolled back and retired; newest first."""
    async with context.database.transaction() as store:
        model = await service.find(store, f"{owner}/{name}")
        found = await store.audit.of_model(model.model_id, cursor, limit)
    shown, next_cursor = listing(found, limit)
    return Listing(items=[_entry(each) for each in shown], next_cursor=next_cursor)


@router.get("/{owner}/{name}/diff", summary="How two versions differ")
async def diff(
    owner: Owner, name: Name, _: ModelsRead, context: Ctx,
    from_version: Annotated[str, Query(alias="from", max_length=4096, examples=["v1"])],
    to_version: Annotated[str, Query(alias="to", max_length=4096, examples=["v2"])],
) -> DiffView:  # fmt: skip
    """Environment, resources, image, weights, and the packages of the locks."""
    model_id = f"{owner}/{name}"
    async with context.database.transaction() as store:
        versions = [
            await service.find_version(store, model_id, each) for each in (from_version, to_version)
        ]
        builds = [
            None if each.build_id is None else await store.builds.get(each.build_id)
            for each in versions
        ]
    first, second = (_facts(v, b) for v, b in zip(versions, builds, strict=True))
    locks = [await _packages(context, build) for build in builds]
    packages = None
    if locks[0] is not None and locks[1] is not None:
        packages = changes(locks[0], locks[1])
    fields = dict(changes(first, second).changed)
    old, new = versions
    env = _names(changes(old.env, new.env))
    resources = changes(old.resources, new.resources)
    schemas = (
        old.input_schema != new.input_schema, old.output_schema != new.output_schema
    )  # fmt: skip
    differ = (fields, env.added, env.removed, env.changed, resources.added, resources.removed,
              resources.changed, *schemas)  # fmt: skip
    return DiffView(
        from_version=old.version, to_version=new.version, same=not any(differ), fields=fields,
        env=env, resources=_view(resources), packages=None if packages is None else _view(packages),
        input_schema_changed=schemas[0], output_schema_changed=schemas[1],
    )  # fmt: skip


def _entry(entry: AuditEntry) -> HistoryEntry:
    _, _, version = entry.subject.partition("@")
    return HistoryEntry(
        id=entry.id, at=entry.created_at, by=entry.key_prefix, action=entry.action,
        version=version or entry.detail.get("to"), detail=dict(entry.detail),
    )  # fmt: skip


def _facts(version: ModelVersion, build: Build | None) -> dict[str, Any]:
    facts: dict[str, Any] = {name: getattr(version, name) for name in _COMPARED}
    return facts | {name: None if build is None else getattr(build, name) for name in _OF_BUILD}


async def _packages(context: Context, build: Build | None) -> dict[str, str] | None:
    if build is None or build.lock_url is None:
        return None
    try:
        text = await asyncio.to_thread(
            context.objects.get_bytes, build.lock_url, max_bytes=_LOCK_BYTES
        )
    except (NotFound, InvalidInput, Unavailable):
        return None
    return locked_packages(text.decode(errors="replace"))


def _view(found: Changes) -> ChangesView:
    return ChangesView(
        added=dict(found.added), removed=dict(found.removed), changed=dict(found.changed)
    )


def _names(found: Changes) -> ChangesView:
    return ChangesView(
        added=dict.fromkeys(found.added, "***"), removed=dict.fromkeys(found.removed, "***"),
        changed=dict.fromkeys(found.changed, ("***", "***")),
    )  # fmt: skip
