"""Artifacts that jobs made."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.retention import ArtifactState
from vyvo_dagster.store.records import ArtifactRow
from vyvo_dagster.store.rows import page, record
from vyvo_dagster.store.tables import artifacts

__all__ = ["ArtifactRepository"]


class ArtifactRepository:
    """SQL over artifacts."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add_many(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert artifacts of completed jobs; a repeat of (job_id, position) changes nothing."""
        if rows:
            await self._connection.execute(insert(artifacts).on_conflict_do_nothing(), list(rows))

    async def of_job(self, job_id: UUID) -> list[ArtifactRow]:
        """A job's artifacts, in the order of its output."""
        query = (
            sa.select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.position)
        )
        return [record(ArtifactRow, r) for r in (await self._connection.execute(query)).mappings()]

    async def get(self, id: UUID, tenant: str | None) -> ArtifactRow | None:
        """One artifact, of `tenant` unless that is None."""
        query = sa.select(artifacts).where(artifacts.c.id == id)
        if tenant is not None:
            query = query.where(artifacts.c.tenant == tenant)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(ArtifactRow, row)

    async def browse(
        self, tenant: str | None, cursor: UUID | None, limit: int, *, type: str | None = None,
        job_id: UUID | None = None, state: ArtifactState | None = None,
    ) -> list[ArtifactRow]:  # fmt: skip
        """Newest first, of `tenant` unless that is None."""
        wanted = {"tenant": tenant, "type": type, "job_id": job_id, "state": state}
        query = sa.select(artifacts).where(
            *(artifacts.c[name] == value for name, value in wanted.items() if value is not None)
        )
        query = page(query, artifacts.c.id, cursor, limit)
        return [record(ArtifactRow, r) for r in (await self._connection.execute(query)).mappings()]
