"""Which versions' images are stale, and asking for new ones.

A version is immutable: a rebuild is a new version `<version>+<date>` (build metadata, in the words
of Semantic Versioning) of the same weights. Promoting it stays a person's decision.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from dagster import AssetRecordsFilter, DagsterInstance
from uuid_utils.compat import uuid7

from resources import StoreResource
from runner_images import load_templates
from vyvo_dagster.domain.build import BuildBackend, partition_key
from vyvo_dagster.execution.names import RUNNER_IMAGE
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build, ModelVersion
from vyvo_dagster.streams import keys

__all__ = ["MAX_AGE", "Stale", "request_rebuild", "stale_versions"]

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


def stale_versions(store: StoreResource, instance: DagsterInstance) -> list[Stale]:
    """The serving version of each model, where its template changed or its image is too old."""
    templates = {name: template.hash for name, template in load_templates().items()}
    now = datetime.now(UTC)
    found: list[Stale] = []
    for version, build in store.call(_serving):
        built_with = _template_hash(instance, partition_key(version.model_id, version.version))
        if version.template not in templates:
            continue
        if built_with is not None and built_with != templates[version.template]:
            found.append(Stale(version, build, f"the template {version.template} changed"))
        elif build.finished_at is not None and now - build.finished_at > MAX_AGE:
            found.append(
                Stale(version, build, f"it was built {(now - build.finished_at).days} days ago")
            )
    return found


async def request_rebuild(db: Store, stale: Stale) -> str:
    """Make the new version and its build; returns the new partition key.

    Raises:
        VersionExists: it was asked for before.
    """
    old, build, build_id = stale.version, stale.build, uuid7()
    name = f"{old.version.partition('+')[0]}+{datetime.now(UTC):%Y%m%d}"
    weights = old.weights_url or old.weights_uri
    version = await db.models.start_building(
        id=uuid7(), model_id=old.model_id, version=name, template=old.template,
        modality=old.modality, weights_uri=weights, env=old.env, resources=old.resources, build_id=build_id,
    )  # fmt: skip
    await db.builds.add(
        id=build_id, tenant=build.tenant, model_id=old.model_id, version=name, version_id=version.id,
        runner_name=build.runner_name, template=old.template, repo=build.repo, ref=build.source_commit or build.ref, weights_uri=weights,
        env=dict(old.env), base_image=build.base_image, backend=BuildBackend(build.backend),
    )  # fmt: skip
    await db.outbox.add(keys.BUILDS, {"id": str(build_id)})
    return partition_key(old.model_id, name)


async def _serving(db: Store) -> list[tuple[ModelVersion, Build]]:
    models = {version.model_id for version in await db.models.servable()}
    found: list[tuple[ModelVersion, Build]] = []
    for model_id in sorted(models):
        version = await db.models.serving(model_id)
        build = await db.builds.get(version.build_id) if version and version.build_id else None
        if version is not None and build is not None:
            found.append((version, build))
    return found


def _template_hash(instance: DagsterInstance, partition: str) -> str | None:
    records = instance.fetch_materializations(
        AssetRecordsFilter(asset_key=RUNNER_IMAGE, asset_partitions=[partition]), limit=1
    ).records
    materialization = records[0].asset_materialization if records else None
    value = materialization.metadata.get("template_hash") if materialization else None
    return None if value is None else str(value.value)
