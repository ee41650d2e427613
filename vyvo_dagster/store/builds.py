"""Runner builds: their rows. Who launches and who executes one is `build_queue`'s business."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.store.build_tables import model_versions, runner_builds
from vyvo_dagster.store.notify import BUILDS_CHANNEL, notify
from vyvo_dagster.store.records import Build
from vyvo_dagster.store.rows import page, record

__all__ = ["BuildRepository"]

_B = runner_builds.c


class BuildRepository:
    """SQL over runner_builds."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, **values: Any) -> Build:
        """Insert a queued build."""
        row = await self._one(
            sa.insert(runner_builds)
            .values(state=BuildState.QUEUED, **values)
            .returning(runner_builds)
        )
        assert row is not None
        return row

    async def get(self, id: UUID) -> Build | None:
        """One build."""
        return await self._one(sa.select(runner_builds).where(_B.id == id))

    async def of_runs(self, run_ids: Iterable[str]) -> Build | None:
        """The build that one of these Dagster runs executes, or executed."""
        return await self._one(
            sa.select(runner_builds).where(_B.run_id.in_(list(run_ids))).limit(1)
        )

    async def newest(self, model_id: str, version: str) -> Build | None:
        """The last build of a version."""
        query = sa.select(runner_builds).where(_B.model_id == model_id, _B.version == version)
        return await self._one(query.order_by(_B.id.desc()).limit(1))

    async def last_of(self, version_id: UUID, build_id: UUID) -> Build | None:
        """The last successful build of a version: the one that made it, or a rebuild of it."""
        query = sa.select(runner_builds).where(
            sa.or_(_B.id == build_id, _B.rebuild_of == version_id),
            _B.state == BuildState.SUCCEEDED,
        )
        return await self._one(query.order_by(_B.id.desc()).limit(1))

    async def rebuilding(self, version_id: UUID) -> bool:
        """Whether a version is being built once more; the version's row is locked until the end."""
        lock = sa.select(model_versions.c.id).where(model_versions.c.id == version_id)
        await self._connection.execute(lock.with_for_update())
        open_ = sa.select(sa.func.count()).where(
            _B.rebuild_of == version_id, _B.state.not_in(BUILD.terminal)
        )
        return bool((await self._connection.execute(open_)).scalar())

    async def browse(
        self,
        tenant: str | None,
        cursor: UUID | None,
        limit: int,
        state: BuildState | None = None,
        model_id: str | None = None,
    ) -> list[Build]:
        """Newest first, of `tenant` unless that is None."""
        query = sa.select(runner_builds)
        for column, value in ((_B.tenant, tenant), (_B.state, state), (_B.model_id, model_id)):
            if value is not None:
                query = query.where(column == value)
        rows = await self._connection.execute(page(query, _B.id, cursor, limit))
        return [record(Build, r) for r in rows.mappings()]

    async def update(self, id: UUID, **values: Any) -> None:
        """Set columns other than the state."""
        await self._connection.execute(sa.update(runner_builds).where(_B.id == id).values(**values))

    async def move(self, id: UUID, to: BuildState, **values: Any) -> Build | None:
        """Move a build along an arrow of its state machine; None when there is no such arrow."""
        if to in BUILD.terminal:
            values["finished_at"] = sa.func.now()
            # There is a place for another one.
            await notify(self._connection, BUILDS_CHANNEL, str(id))
        return await self._one(
            sa.update(runner_builds)
            .where(_B.id == id, _B.state.in_(BUILD.before(to)))
            .values(state=to, **values)
            .returning(runner_builds)
        )

    async def _one(self, statement: sa.Executable) -> Build | None:
        row = (await self._connection.execute(statement)).mappings().first()
        return None if row is None else record(Build, row)
