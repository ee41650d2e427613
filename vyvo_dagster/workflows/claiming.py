"""Which runs an engine has: those that it claims, for as long as it renews their leases."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from vyvo_dagster.domain.workflow.definition import Definition, parse
from vyvo_dagster.domain.workflow.run import RunEnd
from vyvo_dagster.domain.workflow.state import RunState
from vyvo_dagster.errors import Unavailable, VyvoError
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.workflows.live import LiveRun, LiveRuns

__all__ = ["Claiming"]

log = logging.getLogger(__name__)

_GROUP: Final = 100
_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.5
# Others hold the row of a run only for a statement or two.
_HELD_SECONDS: Final = 0.02
_DEFINITIONS: Final = 512


class Claiming:
    """Claims runs, and lets go of those that another engine has taken.

    Args:
        engine_id: whose they are.
        lease: after so long without a renewal another engine takes a run over.
        capacity: runs at a time.
        forget: lets go of a run.
    """

    def __init__(
        self, database: Database, engine_id: UUID, runs: LiveRuns, *, lease: timedelta,
        capacity: int, forget: Callable[[UUID], None],
    ) -> None:  # fmt: skip
        self._database = database
        self._engine_id = engine_id
        self._runs = runs
        self._lease = lease
        self._capacity = capacity
        self._forget = forget
        self._definitions: dict[UUID, Definition] = {}
        self.asked = asyncio.Event()
        """Set when there may be runs to claim."""

    async def claims(self) -> None:
        """Claim what there is, until canceled; a run that was told of by nobody is found in time."""
        while True:
            # Also those whose engine is gone, which nobody tells.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease.total_seconds() / 3):
                    await self.asked.wait()
            self.asked.clear()
            room = min(self._capacity - len(self._runs), _GROUP)
            if room <= 0:
                await asyncio.sleep(_PAUSE_SECONDS)
                self.asked.set()
                continue
            try:
                async with asyncio.timeout(_SECONDS), self._database.transaction() as store:
                    claimed = await store.workflow_runs.claim(self._engine_id, self._lease, room)
                    definitions = await self._definitions_of(store, claimed)
                    passed_over = len(claimed) < room and await store.workflow_runs.any_due()
            except (Unavailable, TimeoutError) as error:
                log.warning("no run is claimed: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)
                self.asked.set()
                continue
            for row in claimed:
                if row.id in definitions:
                    # One of its own that is claimed again had lost its lease meanwhile: read it anew.
                    self._forget(row.id)
                    # One that was taken over was told of before.
                    self._runs.add(LiveRun(row, definitions[row.id], told=row.revision > 1))
            if passed_over:
                await asyncio.sleep(_HELD_SECONDS)
            if passed_over or len(claimed) == room:
                self.asked.set()

    async def leases(self) -> None:
        """Renew leases until canceled."""
        while True:
            await self._runs.present.wait()
            await asyncio.sleep(self._lease.total_seconds() / 3)
            had = self._runs.ids
            try:
                async with asyncio.timeout(_SECONDS), self._database.transaction() as store:
                    mine = await store.workflow_runs.renew(self._engine_id, self._lease)
            except (Unavailable, TimeoutError) as error:
                log.warning("leases are not renewed: %s", error)
                continue
            for lost in had - mine:
                self._forget(lost)

    async def release(self) -> None:
        """Give the runs back at once; call it when the loops have ended."""
        async with asyncio.timeout(5), self._database.transaction() as store:
            await store.workflow_runs.release(self._engine_id)

    async def _definitions_of(
        self, store: Store, runs: Sequence[WorkflowRun]
    ) -> dict[UUID, Definition]:
        """The definitions of runs; one that cannot be read ends its run, and no other."""
        found: dict[UUID, Definition] = {}
        for run in runs:
            try:
                found[run.id] = await self._definition(store, run.version_id)
            except (ValueError, TypeError, KeyError, VyvoError) as error:
                log.exception("the definition of run %s cannot be read", run.id)
                said = f"its definition cannot be read: {type(error).__name__}"
                end = RunEnd(RunState.FAILED, None, "engine_failed", said)
                await store.workflow_runs.end({run.id: end})
        return found

    async def _definition(self, store: Store, version_id: UUID) -> Definition:
        found = self._definitions.get(version_id)
        if found is None:
            version = await store.workflows.version_by_id(version_id)
            assert version is not None  # a run refers to it
            if len(self._definitions) >= _DEFINITIONS:
                self._definitions.clear()
            found = self._definitions[version_id] = parse(version.definition)
        return found
