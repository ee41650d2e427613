"""The model registry: models and their versions."""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.model import VERSION, Modality, VersionState
from vyvo_dagster.errors import VersionExists
from vyvo_dagster.store.build_tables import model_versions, models
from vyvo_dagster.store.notify import REGISTRY_CHANNEL, notify
from vyvo_dagster.store.records import Model, ModelVersion
from vyvo_dagster.store.rows import record

__all__ = ["SERVABLE", "ModelRepository"]

_V = model_versions.c
# Versions that jobs may be sent to.
SERVABLE = (VersionState.ACTIVE, VersionState.READY)


class ModelRepository:
    """SQL over models and model_versions."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def ensure(self, model_id: str, tenant: str, description: str = "") -> Model:
        """The model, made if it is new."""
        await self._connection.execute(
            insert(models)
            .values(model_id=model_id, tenant=tenant, description=description)
            .on_conflict_do_nothing()
        )
        found = await self.get(model_id)
        assert found is not None
        return found

    async def get(self, model_id: str, *, lock: bool = False) -> Model | None:
        """One model; locked, its other promotions wait for this transaction."""
        query = sa.select(models).where(models.c.model_id == model_id)
        if lock:
            query = query.with_for_update()
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(Model, row)

    async def describe(self, model_id: str, description: str) -> Model | None:
        """Set a model's description."""
        row = (
            (
                await self._connection.execute(
                    sa.update(models)
                    .where(models.c.model_id == model_id)
                    .values(description=description)
                    .returning(models)
                )
            )
            .mappings()
            .first()
        )
        return None if row is None else record(Model, row)

    async def browse(self, cursor: str | None, limit: int) -> list[Model]:
        """Models by id, after `cursor`; one more than `limit`."""
        query = sa.select(models).order_by(models.c.model_id).limit(limit + 1)
        if cursor is not None:
            query = query.where(models.c.model_id > cursor)
        return [record(Model, r) for r in (await self._connection.execute(query)).mappings()]

    async def version(self, model_id: str, version: str) -> ModelVersion | None:
        """One version by its name."""
        return await self._one(
            sa.select(model_versions).where(_V.model_id == model_id, _V.version == version)
        )

    async def version_by_id(self, id: UUID) -> ModelVersion | None:
        """One version by its id."""
        return await self._one(sa.select(model_versions).where(_V.id == id))

    async def by_ids(self, ids: Iterable[UUID]) -> list[ModelVersion]:
        """Versions by their ids."""
        query = sa.select(model_versions).where(_V.id.in_(list(ids)))
        return [record(ModelVersion, r) for r in (await self._connection.execute(query)).mappings()]

    async def versions(self, model_id: str) -> list[ModelVersion]:
        """All versions of a model, newest first."""
        query = sa.select(model_versions).where(_V.model_id == model_id).order_by(_V.id.desc())
        return [record(ModelVersion, r) for r in (await self._connection.execute(query)).mappings()]

    async def serving(self, model_id: str) -> ModelVersion | None:
        """The version that new jobs get: the active one, else the newest ready one."""
        return await self._one(
            sa.select(model_versions)
            .where(_V.model_id == model_id, _V.state.in_(SERVABLE))
            .order_by((_V.state == VersionState.ACTIVE).desc(), _V.id.desc())
            .limit(1)
        )

    async def servable(self) -> list[ModelVersion]:
        """All versions that jobs may be sent to; what a registry cache holds."""
        query = sa.select(model_versions).where(_V.state.in_(SERVABLE))
        return [record(ModelVersion, r) for r in (await self._connection.execute(query)).mappings()]

    async def start_building(
        self,
        *,
        id: UUID,
        model_id: str,
        version: str,
        template: str,
        modality: Modality,
        weights_uri: str | None,
        env: Mapping[str, str],
        resources: Mapping[str, int],
        build_id: UUID,
    ) -> ModelVersion:
        """Make the version, or take a draft of it, and mark it as building.

        Raises:
            VersionExists: it is built, being built, or retired.
        """
        values = {
            "template": template,
            "modality": modality,
            "weights_uri": weights_uri,
            "env": dict(env),
            "resources": dict(resources),
            "build_id": build_id,
            "state": VersionState.BUILDING,
            "updated_at": sa.func.now(),
        }
        made = await self._one(
            insert(model_versions)
            .values(id=id, model_id=model_id, version=version, **values)
            .on_conflict_do_update(
                index_elements=["model_id", "version"],
                set_=values,
                where=_V.state == VersionState.DRAFT,
            )
            .returning(model_versions)
        )
        if made is None:
            raise VersionExists(
                f"version {version} of {model_id} is already built or being built; name a new version"
            )
        return made

    async def create_draft(
        self,
        *,
        id: UUID,
        model_id: str,
        version: str,
        template: str,
        modality: Modality,
        values: Mapping[str, Any],
    ) -> ModelVersion | None:
        """A version registered by hand; None when it exists."""
        return await self._one(
            insert(model_versions)
            .values(
                id=id,
                model_id=model_id,
                version=version,
                template=template,
                modality=modality,
                state=VersionState.DRAFT,
                **values,
            )
            .on_conflict_do_nothing()
            .returning(model_versions)
        )

    async def set_weights(self, id: UUID, url: str, sha256: str, size_bytes: int) -> None:
        """Record the checksummed copy of a version's weights."""
        await self._connection.execute(
            sa.update(model_versions)
            .where(_V.id == id)
            .values(
                weights_url=url,
                weights_sha256=sha256,
                weights_size_bytes=size_bytes,
                updated_at=sa.func.now(),
            )
        )

    async def update(
        self, id: UUID, before: frozenset[VersionState], values: Mapping[str, Any]
    ) -> ModelVersion | None:
        """Update a version that is in one of `before`; None when it is in another state."""
        updated = await self._one(
            sa.update(model_versions)
            .where(_V.id == id, _V.state.in_(before))
            .values(**values, updated_at=sa.func.now())
            .returning(model_versions)
        )
        await notify(self._connection, REGISTRY_CHANNEL, str(id))
        return updated

    async def move(self, id: UUID, to: VersionState, **values: Any) -> ModelVersion | None:
        """Move a version along an arrow of its state machine; None when there is no such arrow."""
        return await self.update(id, VERSION.before(to), {"state": to, **values})

    async def demote_active(self, model_id: str) -> None:
        """Make the active version, if any, ready again; part of a promotion's transaction."""
        await self._connection.execute(
            sa.update(model_versions)
            .where(_V.model_id == model_id, _V.state == VersionState.ACTIVE)
            .values(state=VersionState.READY, updated_at=sa.func.now())
        )

    async def _one(self, statement: sa.Executable) -> ModelVersion | None:
        row = (await self._connection.execute(statement)).mappings().first()
        return None if row is None else record(ModelVersion, row)
