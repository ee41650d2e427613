"""Runner builds. The row is the trigger: who claims it launches it, who begins it executes it."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.store.records import Build
from vyvo_dagster.store.rows import page, record
from vyvo_dagster.store.tables import runner_builds

__all__ = ["BuildRepository"]

_B = runner_builds.c
# A launcher that died between its claim and the run's start gives way after this long.
LAUNCH_CLAIM_LIFE = timedelta(seconds=60)


def _launchable() -> sa.ColumnElement[bool]:
    return sa.and_(
        _B.state == BuildState.QUEUED,
        sa.or_(
            _B.launch_claimed_at.is_(None),
            _B.launch_claimed_at < sa.func.now() - LAUNCH_CLAIM_LIFE,
        ),
    )


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

    async def claim_launch(self, id: UUID) -> Build | None:
        """Claim the launch of a queued build; None when another launcher has it or it is not queued."""
        return await self._one(
            sa.update(runner_builds)
            .where(_B.id == id, _launchable())
            .values(launch_claimed_at=sa.func.now())
            .returning(runner_builds)
        )

    async def release_launch(self, id: UUID) -> None:
        """Give a claim back after a launch that failed, so that the sensor takes it."""
        await self._connection.execute(
            sa.update(runner_builds)
            .where(_B.id == id, _B.state == BuildState.QUEUED)
            .values(launch_claimed_at=None)
        )

    async def unlaunched(self, limit: int) -> list[UUID]:
        """Queued builds that nobody launches, oldest first: what a lost stream entry leaves behind."""
        query = sa.select(_B.id).where(_launchable()).order_by(_B.created_at).limit(limit)
        return list((await self._connection.execute(query)).scalars())

    async def begin(self, id: UUID, run_id: str, earlier_runs: Iterable[str] = ()) -> Build | None:
        """Take the build for execution by `run_id`; None when another run has it or it has ended.

        A retry of the run names the runs that it retries, and takes over from them.
        """
        mine = sa.and_(
            _B.state.in_((BuildState.BUILDING, BuildState.PUSHING)),
            _B.run_id.in_([run_id, *earlier_runs]),
        )
        return await self._one(
            sa.update(runner_builds)
            .where(_B.id == id, sa.or_(_B.state == BuildState.QUEUED, mine))
            .values(
                state=BuildState.BUILDING,
                run_id=run_id,
                started_at=sa.func.coalesce(_B.started_at, sa.func.now()),
            )
            .returning(runner_builds)
        )

    async def update(self, id: UUID, **values: Any) -> None:
        """Set columns other than the state."""
        await self._connection.execute(sa.update(runner_builds).where(_B.id == id).values(**values))

    async def move(self, id: UUID, to: BuildState, **values: Any) -> Build | None:
        """Move a build along an arrow of its state machine; None when there is no such arrow."""
        if to in BUILD.terminal:
            values["finished_at"] = sa.func.now()
        return await self._one(
            sa.update(runner_builds)
            .where(_B.id == id, _B.state.in_(BUILD.before(to)))
            .values(state=to, **values)
            .returning(runner_builds)
        )

    async def _one(self, statement: sa.Executable) -> Build | None:
        row = (await self._connection.execute(statement)).mappings().first()
        return None if row is None else record(Build, row)
