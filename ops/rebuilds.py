"""Which versions' images are stale, and asking for their rebuilds.

A version is immutable: a rebuild that comes to the same digest changes nothing, and one that does
not is registered as a new version `<version>+<date>`. Promoting it stays a person's decision.
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from uuid_utils.compat import uuid7

from resources import BuildingResource, StoreResource
from runner_images import Template, load_templates
from vyvo_dagster.building.base_image import current_digest
from vyvo_dagster.domain.build import BuildBackend, partition_key
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.build_requests import build_again
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build, ModelVersion
from vyvo_dagster.streams import keys

__all__ = ["MAX_AGE", "Stale", "request_rebuild", "stale_versions"]

_log = logging.getLogger(__name__)

MAX_AGE: Final = timedelta(days=7)
"""Base images and libraries get security fixes: an image older than this is built again."""


@dataclass(frozen=True, slots=True)
class Stale:
    """A serving version that should be built again."""

    version: ModelVersion
    build: Build
    why: str

    @property
    def partition(self) -> str:
        """Its Dagster partition."""
        return partition_key(self.version.model_id, self.version.version)


def stale_versions(
    store: StoreResource, building: BuildingResource, *, max_age: timedelta | None = MAX_AGE
) -> list[Stale]:
    """The serving version of each model, where what it was built from has changed, or it is too old.

    Args:
        store: the registry.
        building: this build host; the digests of base images are its engine's, where there is one.
        max_age: of the last build; None does not look at it.
    """
    templates, bases = load_templates(), dict[str, str | None]()
    now = datetime.now(UTC)
    found: list[Stale] = []
    for version, build in store.call(_serving):
        template = templates.get(version.template)
        if template is None:
            continue
        why = _changed(build, template, building, bases)
        if why is None and max_age is not None and build.finished_at is not None:
            age = now - build.finished_at
            why = f"it was built {age.days} days ago" if age > max_age else None
        if why is not None:
            found.append(Stale(version, build, why))
    return found


async def request_rebuild(db: Store, stale: Stale) -> Build:
    """Queue the build.

    Raises:
        Conflict: the version is being built again already, or was retired meanwhile.
    """
    build = await build_again(db, stale.build, stale.version, uuid7())
    await db.outbox.add(keys.BUILDS, {"id": str(build.id)})
    return build


def _changed(
    build: Build, template: Template, building: BuildingResource, bases: dict[str, str | None]
) -> str | None:
    if build.template_hash is not None and build.template_hash != template.hash:
        return f"the template {template.name} changed"
    if build.backend_used is BuildBackend.VENV or build.base_digest is None:
        return None
    of_gpu = building.cuda_base_image if template.accelerator == "cuda" else None
    base = build.base_image or template.base_image or of_gpu or building.base_image
    if base not in bases:
        bases[base] = _digest(base, building.docker_host)
    now = bases[base]
    return f"the base image {base} changed" if now not in {None, build.base_digest} else None


def _digest(reference: str, docker_host: str | None) -> str | None:
    try:
        return current_digest(reference, docker_host)
    except Unavailable as error:
        _log.info("base images are not looked at: %s", error.detail)
        return None


async def _serving(db: Store) -> list[tuple[ModelVersion, Build]]:
    """The serving version of each model, and its last build, be it a rebuild."""
    models = {version.model_id for version in await db.models.servable()}
    found: list[tuple[ModelVersion, Build]] = []
    for model_id in sorted(models):
        version = await db.models.serving(model_id)
        if version is None or version.build_id is None:
            continue
        build = await db.builds.last_of(version.id, version.build_id)
        if build is not None:
            found.append((version, build))
    return found
