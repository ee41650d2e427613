"""The queue of builds: who may launch the next, who may begin, and which claims are stale.

All of it is decided under one lock, so that two launchers or two hosts never count the same place.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.domain.build_queue import BuildLimits, launchable, no_place
from vyvo_dagster.store.build_tables import runner_builds
from vyvo_dagster.store.records import Build
from vyvo_dagster.store.rows import record

__all__ = ["AT_WORK", "BuildQueueRepository", "Taken"]

_B = runner_builds.c
# A launcher that died between its claim and the run's start gives way after this long.
_CLAIM_LIFE: Final = timedelta(seconds=60)
# Any constant of ours; see store.migrate for the other one.
_LOCK: Final = 0x76796275
_WAITING: Final = 500

AT_WORK: Final = (BuildState.BUILDING, BuildState.PUSHING)
"""States of a build that a run executes."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A build that a run may execute now.

    Args:
        build: as it is now.
        begun: whether this call took it, and not an earlier step of the same run.
    """

    build: Build
    begun: bool


class BuildQueueRepository:
    """SQL over runner_builds, by the limits."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def claim_next(self, limits: BuildLimits, hosts: int) -> list[Build]:
        """Claim the launches for which there is a place, in the order of the builds' submission.

        A claimed build has its place until it ends, or its claim is released.
        """
        await self._lock()
        claimed = sa.and_(_B.state == BuildState.QUEUED, _B.launch_claimed_at.is_not(None))
        flying = sa.select(_B.template).where(sa.or_(claimed, _B.state.in_(AT_WORK)))
        in_flight = list((await self._connection.execute(flying)).scalars())
        query = (
            sa.select(_B.id, _B.template)
            .where(_B.state == BuildState.QUEUED, _B.launch_claimed_at.is_(None))
            .order_by(_B.created_at, _B.id)
            .limit(_WAITING)
        )
        waiting = [(row.id, row.template) for row in await self._connection.execute(query)]
        chosen = launchable(waiting, in_flight, limits, hosts)
        if not chosen:
            return []
        rows = await self._rows(
            sa.update(runner_builds)
            .where(_B.id.in_(chosen))
            .values(launch_claimed_at=sa.func.clock_timestamp())
            .returning(runner_builds)
        )
        return sorted(rows, key=lambda build: chosen.index(build.id))

    async def claim_stale(self, limit: int) -> list[Build]:
        """Claim again the launches whose claim grew old without a run that began; oldest first."""
        await self._lock()
        old = (
            sa.select(_B.id)
            .where(
                _B.state == BuildState.QUEUED,
                _B.launch_claimed_at < sa.func.now() - _CLAIM_LIFE,
            )
            .order_by(_B.created_at)
            .limit(limit)
        )
        rows = await self._rows(
            sa.update(runner_builds)
            .where(_B.id.in_(old))
            .values(launch_claimed_at=sa.func.clock_timestamp())
            .returning(runner_builds)
        )
        return sorted(rows, key=lambda build: build.created_at)

    async def unlaunched(self, limit: int) -> list[UUID]:
        """Queued builds that nobody launches, oldest first: what a lost stream entry leaves behind."""
        stale = _B.launch_claimed_at < sa.func.now() - _CLAIM_LIFE
        query = (
            sa.select(_B.id)
            .where(_B.state == BuildState.QUEUED, sa.or_(_B.launch_claimed_at.is_(None), stale))
            .order_by(_B.created_at)
            .limit(limit)
        )
        return list((await self._connection.execute(query)).scalars())

    async def release(self, ids: Iterable[UUID]) -> None:
        """Give claims back after a launch that failed, so that another launcher takes them."""
        await self._connection.execute(
            sa.update(runner_builds)
            .where(_B.id.in_(list(ids)), _B.state == BuildState.QUEUED)
            .values(launch_claimed_at=None)
        )

    async def begin(
        self,
        id: UUID,
        run_id: str,
        host: str,
        limits: BuildLimits,
        earlier_runs: Iterable[str] = (),
    ) -> Taken | str | None:
        """Take the build for execution by `run_id` on `host`.

        A retry of the run names the runs that it retries, and takes over from them.

        Returns:
            The build; or, in words, why there is no place for it yet; or None where another run
            has it or it has ended.
        """  # fmt: skip
        await self._lock()
        now = await self._rows(sa.select(runner_builds).where(_B.id == id).with_for_update())
        if not now:
            return None
        build = now[0]
        if build.state in BUILD.terminal:
            return None
        if build.state in AT_WORK and build.run_id not in {run_id, *earlier_runs}:
            return None
        begun = build.state is BuildState.QUEUED or build.run_id != run_id
        if begun:
            others = sa.select(_B.template, _B.host).where(_B.state.in_(AT_WORK), _B.id != id)
            rows = await self._connection.execute(others)
            why = no_place(build.template, host, [(r.template, r.host) for r in rows], limits)
            if why is not None:
                return why
        (taken,) = await self._rows(
            sa.update(runner_builds)
            .where(_B.id == id)
            .values(
                state=BuildState.BUILDING,
                run_id=run_id,
                host=host,
                attempt=_B.attempt + (1 if begun else 0),
                # Not now(): this transaction may have waited for the lock while another build ended.
                started_at=sa.func.coalesce(_B.started_at, sa.func.clock_timestamp()),
            )
            .returning(runner_builds)
        )
        return Taken(taken, begun)

    async def at_work(self, older_than: timedelta) -> list[Build]:
        """Builds that a run executes, or should, begun that long ago."""
        return await self._rows(
            sa.select(runner_builds)
            .where(_B.state.in_(AT_WORK), _B.started_at < sa.func.now() - older_than)
            .order_by(_B.id)
        )

    async def depths(self) -> dict[BuildState, int]:
        """How many builds are queued, and how many at work, by state."""
        query = (
            sa.select(_B.state, sa.func.count())
            .where(_B.state.in_((BuildState.QUEUED, *AT_WORK)))
            .group_by(_B.state)
        )
        return {BuildState(state): n for state, n in await self._connection.execute(query)}

    async def _lock(self) -> None:
        await self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))

    async def _rows(self, statement: sa.Executable) -> list[Build]:
        rows: Any = (await self._connection.execute(statement)).mappings()
        return [record(Build, row) for row in rows]
