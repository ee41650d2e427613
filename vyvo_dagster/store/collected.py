"""What was built and may be removed, what is still referred to, and what has been removed."""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.build import BUILD
from vyvo_dagster.domain.collection import CollectedKind, Image
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.store.build_tables import collected, model_versions, runner_builds
from vyvo_dagster.store.node_tables import assignments

__all__ = ["CollectedRepository"]

_V = model_versions.c
_B = runner_builds.c


class CollectedRepository:
    """SQL over what the collection looks at, and over collected."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def images(self) -> list[Image]:
        """What builds that have ended have published, and what retired versions had."""
        built = sa.select(_B.image, _B.model_id, _B.finished_at).where(
            _B.image.is_not(None), _B.finished_at.is_not(None)
        )
        retired = sa.select(_V.runner_image, _V.model_id, _V.updated_at).where(
            _V.runner_image.is_not(None), _V.state == VersionState.RETIRED
        )
        rows = await self._connection.execute(sa.union_all(built, retired))
        return [Image(name, model_id, since) for name, model_id, since in rows]

    async def referred(self) -> set[str]:
        """Images of versions that are not retired, and of assignments that are not removed."""
        kept = sa.select(_V.runner_image).where(
            _V.runner_image.is_not(None), _V.state != VersionState.RETIRED
        )
        assigned = (
            sa.select(_V.runner_image)
            .join(assignments, assignments.c.version_id == _V.id)
            .where(
                _V.runner_image.is_not(None),
                assignments.c.state != AssignmentState.REMOVED,
            )
        )
        return set((await self._connection.execute(sa.union(kept, assigned))).scalars())

    async def busy(self) -> set[str]:
        """Models that are being built."""
        query = sa.select(_B.model_id).where(_B.state.not_in(BUILD.terminal)).distinct()
        return set((await self._connection.execute(query)).scalars())

    async def locks_in_use(self, images: Collection[str]) -> set[str]:
        """Locks (`sha256:...`) of the builds of these images, and of builds under way."""
        query = sa.select(_B.lock_sha256).where(
            _B.lock_sha256.is_not(None),
            sa.or_(_B.image.in_(images), _B.state.not_in(BUILD.terminal)),
        )
        return set((await self._connection.execute(query)).scalars())

    async def lock_model(self, model_id: str) -> None:
        """Keep a model's versions from changing until this transaction ends."""
        lock = sa.select(_V.id).where(_V.model_id == model_id).with_for_update()
        await self._connection.execute(lock)

    async def add(
        self, id: UUID, kind: CollectedKind, name: str, place: str, size_bytes: int
    ) -> None:
        """Record what was removed; versions whose image it was say so from now on."""
        await self._connection.execute(
            sa.insert(collected).values(
                id=id, kind=kind, name=name, place=place, size_bytes=size_bytes
            )
        )
        if kind in {CollectedKind.REGISTRY_IMAGE, CollectedKind.ENVIRONMENT}:
            await self._connection.execute(
                sa.update(model_versions)
                .where(_V.runner_image == name, _V.state == VersionState.RETIRED)
                .values(collected_at=sa.func.now())
            )

    async def removed_at(self, kind: CollectedKind, name: str) -> datetime | None:
        """When something was removed last, if it was."""
        t = collected.c
        query = sa.select(sa.func.max(t.created_at)).where(t.kind == kind, t.name == name)
        return (await self._connection.execute(query)).scalar()

    async def totals(self) -> dict[CollectedKind, tuple[int, int]]:
        """How many things were removed, and their bytes, by kind."""
        t = collected.c
        query = sa.select(t.kind, sa.func.count(), sa.func.sum(t.size_bytes)).group_by(t.kind)
        rows = await self._connection.execute(query)
        return {CollectedKind(kind): (count, int(size)) for kind, count, size in rows}
