"""What wakes runs: events of their jobs, notifications, and a sweep of the rows for what was missed."""

import asyncio
import contextlib
import logging
from typing import Final
from uuid import UUID

import psycopg

from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.notify import WORKFLOW_CHANNEL, listen
from vyvo_dagster.streams.events import Event
from vyvo_dagster.streams.hub import EventHub
from vyvo_dagster.workflows.live import LiveRuns

__all__ = ["Waking"]

log = logging.getLogger(__name__)

_JOBS: Final = 1000
_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.5
# How long events are followed when the last run has ended: the next one may be near.
_LINGER_SECONDS: Final = 5.0
# A job that starts and ends within this is written once.
_SETTLE_SECONDS: Final = 0.25
_LATER: Final = frozenset({JobEventKind.DISPATCHED, JobEventKind.STARTED, JobEventKind.REQUEUED})


class Waking:
    """Wakes the runs of an engine.

    Args:
        new: set when there may be runs to claim.
        sweep_seconds: how often rows are looked at for what no event told.
    """

    def __init__(
        self, database: Database, dsn: str, hub: EventHub, engine_id: UUID, runs: LiveRuns, *,
        new: asyncio.Event, sweep_seconds: float,
    ) -> None:  # fmt: skip
        self._database = database
        self._dsn = dsn
        self._hub = hub
        self._engine_id = engine_id
        self._runs = runs
        self._new = new
        self._sweep_seconds = sweep_seconds

    async def notifications(self) -> None:
        """Hear of runs that are queued or to be canceled, until canceled."""
        while True:
            try:
                async for notice in listen(self._dsn, WORKFLOW_CHANNEL):
                    kind, _, named = ("run", "", "") if notice is None else notice[1].partition(":")
                    if kind == "run":
                        self._new.set()
                        with contextlib.suppress(ValueError):
                            self._runs.wake([UUID(named)])
            except psycopg.OperationalError as error:
                log.warning("notifications stopped: %s", str(error).splitlines()[0])
                await asyncio.sleep(_PAUSE_SECONDS)

    async def events(self) -> None:
        """Follow the jobs that are waited for, while there are runs, until canceled."""
        while True:
            await self._runs.present.wait()
            async with self._hub.subscribe(None, self._accepts) as subscription:
                # What has happened before it began to follow.
                await self._look()
                while True:
                    events = await subscription.next(_LINGER_SECONDS)
                    if subscription.gap():
                        await self._look()
                    elif not events and not self._runs:
                        break
                    self._take(events)

    def _take(self, events: list[Event]) -> None:
        ends: dict[UUID, UUID] = {}
        later: dict[UUID, UUID] = {}
        for event in events:
            job = UUID(event.topic)
            if (run := self._runs.run_of(job)) is not None:
                (ends if event.kind == JobEventKind.COMPLETED else later)[job] = run
        self._runs.wake(set(ends.values()), ends)
        self._settle(later)

    def _accepts(self, event: Event) -> bool:
        if event.kind != JobEventKind.COMPLETED and event.kind not in _LATER:
            return False
        try:
            return self._runs.run_of(UUID(event.topic)) is not None
        except ValueError:
            return False

    def _settle(self, jobs: dict[UUID, UUID]) -> None:
        if not jobs:
            return

        def settled() -> None:
            still = {job: run for job, run in jobs.items() if self._runs.run_of(job) is not None}
            self._runs.wake(set(still.values()), still)

        asyncio.get_running_loop().call_later(_SETTLE_SECONDS, settled)

    async def sweep(self) -> None:
        """Look at the rows every now and then while there are runs, until canceled."""
        while True:
            await self._runs.present.wait()
            await asyncio.sleep(self._sweep_seconds)
            await self._look()

    async def _look(self) -> None:
        """Find what no event told: ends of jobs, and cancels."""
        if not self._runs:
            return
        try:
            async with asyncio.timeout(_SECONDS), self._database.transaction() as store:
                unseen = await store.workflow_engine.unseen(self._engine_id, _JOBS)
                canceled = await store.workflow_engine.to_cancel(self._engine_id)
        except (Unavailable, TimeoutError) as error:
            log.warning("the rows cannot be looked at: %s", error)
            return
        self._runs.wake([run for run, _ in unseen], [job for _, job in unseen])
        self._runs.wake(canceled)
