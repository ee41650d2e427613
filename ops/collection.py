"""Removing what nobody refers to any more: images, environments, wheelhouses.

What a version that may serve, or an assignment in force, refers to is never touched, nor anything of
a model that is being built. Each thing is looked at again, under a lock, right before it goes.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from dagster import Config, MetadataValue, OpExecutionContext, job, op
from pydantic import Field
from uuid_utils.compat import uuid7

from resources import BuildingResource, StoreResource
from vyvo_dagster.building.cached_things import Removable, environments, wheelhouses
from vyvo_dagster.building.engine_images import EngineImages
from vyvo_dagster.building.registry import delete_manifest
from vyvo_dagster.domain.collection import CollectedKind, Image, Keep, collectable
from vyvo_dagster.errors import VyvoError
from vyvo_dagster.store.database import Store

__all__ = ["collect_unreferenced"]

_VENV: Final = "venv://sha256:"
# A build under way may have looked at a cache a moment ago, and use it in a moment.
_IN_USE: Final = timedelta(hours=1)


class Collect(Config):
    """How to collect."""

    dry_run: bool = Field(default=False, description="Only say what would be removed.")


@dataclass(slots=True)
class _Told:
    """What was, or would be, removed."""

    kind: CollectedKind
    name: str
    place: str
    size_bytes: int


@op(description="Remove images, environments and wheelhouses that nobody refers to.")
def collect_images(
    context: OpExecutionContext, config: Collect, store: StoreResource, building: BuildingResource
) -> None:
    """See the module. What cannot be removed now is told of, and tried again with the next run."""
    keep = Keep(timedelta(days=building.keep_days), building.keep_count)
    told: list[_Told] = []
    for work in (_registry_images, _engine_images, _folders):
        try:
            for found in work(context, store, building, keep, dry_run=config.dry_run):
                context.log.info(
                    "%s %s %s of %s, %.1f MB", "would remove" if config.dry_run else "removed",
                    found.kind, found.name, found.place, found.size_bytes / 1e6,
                )  # fmt: skip
                told.append(found)
        except VyvoError as error:
            context.log.warning("%s", error.detail)
    context.add_output_metadata({
        "dry_run": config.dry_run,
        "removed": MetadataValue.int(0 if config.dry_run else len(told)),
        "found": MetadataValue.json([{"kind": t.kind, "name": t.name, "place": t.place,
                                      "size_bytes": t.size_bytes} for t in told]),
        "size_bytes": MetadataValue.int(sum(t.size_bytes for t in told)),
    })  # fmt: skip


@job(description="Daily: remove images and caches that nobody refers to; `dry_run` only tells.")
def collect_unreferenced() -> None:
    """See collect_images."""
    collect_images()


def _registry_images(
    context: OpExecutionContext, store: StoreResource, building: BuildingResource, keep: Keep, *,
    dry_run: bool,
) -> Iterator[_Told]:  # fmt: skip
    """Manifests in OCI registries, by digest; the registry's own collection frees the layers."""
    for image in _collectable(store, keep):
        if image.name.startswith(_VENV):
            continue
        registry, repository, digest = _parts(image.name)
        gone = store.call(
            lambda db, name=image.name: db.collected.removed_at(CollectedKind.REGISTRY_IMAGE, name)
        )
        if gone is not None and gone > image.since:
            continue

        remove = partial(delete_manifest, registry, repository, digest, dry_run=dry_run)
        told = _remove(context, store, image, CollectedKind.REGISTRY_IMAGE, registry, remove,
                       dry_run=dry_run)  # fmt: skip
        if told is not None:
            yield told


def _engine_images(
    _context: OpExecutionContext, store: StoreResource, building: BuildingResource, keep: Keep, *,
    dry_run: bool,
) -> Iterator[_Told]:  # fmt: skip
    """What this build host's engine still has of images that may go; those of containers stay."""
    if building.engine == "process":
        return
    with EngineImages.opened(building.docker_host) as engine:
        if engine is None:
            return
        here = engine.names()
        for image in _collectable(store, keep):
            if image.name not in here:
                continue
            size = engine.size_bytes(image.name) if dry_run else engine.remove(image.name)
            if size is None:
                continue
            told = _Told(CollectedKind.ENGINE_IMAGE, image.name, building.host, size)
            if not dry_run:
                _record(store, told)
            yield told


def _folders(
    _context: OpExecutionContext, store: StoreResource, building: BuildingResource, keep: Keep, *,
    dry_run: bool,
) -> Iterator[_Told]:  # fmt: skip
    """Environments and wheelhouses on this host that were not used for so long."""
    referred, locks, busy = store.call(_in_use)
    age = max(keep.age, _IN_USE) if busy else keep.age
    before = (datetime.now(UTC) - age).timestamp()
    found: list[tuple[CollectedKind, Removable]] = [
        *((CollectedKind.ENVIRONMENT, e) for e in environments(building.root, before)
          if e.name not in referred),
        *((CollectedKind.WHEELHOUSE, w) for w in wheelhouses(building.root, before)
          if w.name not in locks),
    ]  # fmt: skip
    for kind, folder in found:
        told = _Told(kind, folder.name, building.host, folder.size_bytes())
        if not dry_run:

            async def aside(
                db: Store, kind: CollectedKind = kind, folder: Removable = folder
            ) -> bool:
                names, in_use, _ = await _in_use(db)
                known = names if kind is CollectedKind.ENVIRONMENT else in_use
                return folder.name not in known and folder.set_aside(before)

            if not store.call(aside):
                continue
            folder.delete()
            _record(store, told)
        yield told


async def _in_use(db: Store) -> tuple[set[str], set[str], set[str]]:
    referred = await db.collected.referred()
    return referred, await db.collected.locks_in_use(referred), await db.collected.busy()


def _collectable(store: StoreResource, keep: Keep) -> list[Image]:
    async def look(db: Store) -> list[Image]:
        return collectable(
            await db.collected.images(), await db.collected.referred(), await db.collected.busy(),
            keep, datetime.now(UTC),
        )  # fmt: skip

    return store.call(look)


def _remove(
    context: OpExecutionContext, store: StoreResource, image: Image, kind: CollectedKind,
    place: str, remove: Callable[[], int | None], *, dry_run: bool,
) -> _Told | None:  # fmt: skip
    """Remove an image unless somebody refers to it by now; None where it stays, or is gone already."""

    async def locked(db: Store) -> _Told | None:
        await db.collected.lock_model(image.model_id)
        referred, busy = await db.collected.referred(), await db.collected.busy()
        if image.name in referred or image.model_id in busy:
            return None
        size = await asyncio.to_thread(remove)
        if not dry_run:
            await db.collected.add(uuid7(), kind, image.name, place, size or 0)
        return None if size is None else _Told(kind, image.name, place, size)

    try:
        return store.call(locked)
    except VyvoError as error:
        context.log.warning("%s stays: %s", image.name, error.detail)
        return None


def _record(store: StoreResource, told: _Told) -> None:
    store.call(
        lambda db: db.collected.add(uuid7(), told.kind, told.name, told.place, told.size_bytes)
    )


def _parts(image: str) -> tuple[str, str, str]:
    """Registry, repository and digest of `registry/repository@digest`."""
    name, _, digest = image.partition("@")
    registry, _, repository = name.partition("/")
    return registry, repository, digest
