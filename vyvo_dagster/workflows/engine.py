"""The engine: claims runs, wakes when something happens to them, and takes their turns.

Nothing is polled for a run that waits: it is a few rows in memory until an event of one of its jobs,
a timer or a notification wakes it. What came during one turn is the next one, for all runs at once.
A sweep of the rows finds what no event told.
"""

import asyncio
import contextlib
import heapq
import logging
import time
from collections.abc import Collection, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg
from redis.exceptions import RedisError
from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.ends import count_ends
from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.domain.workflow.definition import Definition, parse
from vyvo_dagster.domain.workflow.names import Sign
from vyvo_dagster.domain.workflow.run import Outcome, RunEnd
from vyvo_dagster.domain.workflow.state import RunState
from vyvo_dagster.errors import Unavailable, VyvoError
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.notify import WORKFLOW_CHANNEL, listen
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.events import Event
from vyvo_dagster.streams.hub import EventHub
from vyvo_dagster.telemetry import metrics
from vyvo_dagster.workflows.announcing import tell
from vyvo_dagster.workflows.http_step import HttpSteps
from vyvo_dagster.workflows.live import Attempt, LiveRun
from vyvo_dagster.workflows.measuring import measure
from vyvo_dagster.workflows.requests import Requests, interrupted
from vyvo_dagster.workflows.submission import JobMaker
from vyvo_dagster.workflows.turn import Retired, Turn, Turned

__all__ = ["WorkflowEngine"]

log = logging.getLogger(__name__)

_GROUP: Final = 100
_JOBS: Final = 1000
_TURN_SECONDS: Final = 30.0
_REDIS_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.5
_DEFINITIONS: Final = 512
# A job that starts and ends within this is written once.
_SETTLE_SECONDS: Final = 0.25
_LATER: Final = frozenset({JobEventKind.DISPATCHED, JobEventKind.STARTED, JobEventKind.REQUEUED})


class WorkflowEngine:
    """Drives runs until canceled; any number of engines may run.

    Args:
        lease: after so long without a renewal another engine takes a run over.
        capacity: runs at a time.
        sweep_seconds: how often rows are looked at for what no event told.
    """

    def __init__(
        self, database: Database, dsn: str, redis: AsyncRedis, hub: EventHub, *,
        http: HttpSteps, jobs: JobMaker, sign: Sign | None, lease: timedelta,
        capacity: int = 5000, sweep_seconds: float = 2.0,
    ) -> None:  # fmt: skip
        self.id = uuid7()
        self._database = database
        self._dsn = dsn
        self._redis = redis
        self._hub = hub
        self._requests = Requests(http, self._requested)
        self._jobs_of = jobs
        self._sign = sign
        self._lease = lease
        self._capacity = capacity
        self._sweep = sweep_seconds
        self._runs: dict[UUID, LiveRun] = {}
        self._run_of: dict[UUID, UUID] = {}
        self._definitions: dict[UUID, Definition] = {}
        self._dirty: dict[UUID, None] = {}
        self._looked: dict[UUID, None] = {}
        self._timers: list[tuple[datetime, UUID]] = []
        self._asked = asyncio.Event()
        self._new = asyncio.Event()
        self._done: list[int] = []

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """All that the engine does, as loops that run until canceled, by name."""
        return {
            "notifications": self._listen(), "claims": self._claims(), "leases": self._leases(),
            "sweep": self._sweeps(), "events": self._events(), "timers": self._clock(),
            "turns": self._turns(),
        }  # fmt: skip

    @property
    def live(self) -> int:
        """How many runs it drives."""
        return len(self._runs)

    async def stop(self) -> None:
        """End its requests and give its runs back at once; call it when the loops have ended."""
        await self._requests.stop()
        async with asyncio.timeout(5), self._database.transaction() as store:
            await store.workflow_runs.release(self.id)

    # What wakes it

    async def _listen(self) -> None:
        while True:
            try:
                async for notice in listen(self._dsn, WORKFLOW_CHANNEL):
                    kind, _, named = ("run", "", "") if notice is None else notice[1].partition(":")
                    if kind == "run":
                        self._new.set()
                        self._wake_text(named)
            except psycopg.OperationalError as error:
                log.warning("notifications stopped: %s", str(error).splitlines()[0])
                await asyncio.sleep(_PAUSE_SECONDS)

    def _wake_text(self, id: str) -> None:
        with contextlib.suppress(ValueError):
            self._wake([UUID(id)])

    def _wake(self, runs: Collection[UUID], jobs: Collection[UUID] = ()) -> None:
        mine = dict.fromkeys(run for run in runs if run in self._runs)
        if mine:
            self._dirty |= mine
            self._looked |= dict.fromkeys(jobs)
            self._asked.set()

    async def _events(self) -> None:
        """Follow the jobs of the steps that wait."""
        ends: dict[UUID, UUID] = {}
        async with self._hub.subscribe(None, self._accepts) as subscription:
            while True:
                events = await subscription.next(5.0)
                if subscription.gap():
                    await self._look()
                later: dict[UUID, UUID] = {}
                for event in events:
                    job = UUID(event.topic)
                    if (run := self._run_of.get(job)) is not None:
                        (ends if event.kind == JobEventKind.COMPLETED else later)[job] = run
                self._wake(set(ends.values()), ends)
                ends = {}
                self._settle(later)

    def _accepts(self, event: Event) -> bool:
        if event.kind != JobEventKind.COMPLETED and event.kind not in _LATER:
            return False
        try:
            return UUID(event.topic) in self._run_of
        except ValueError:
            return False

    def _settle(self, jobs: dict[UUID, UUID]) -> None:
        if not jobs:
            return

        def settled() -> None:
            still = {job: run for job, run in jobs.items() if job in self._run_of}
            self._wake(set(still.values()), still)

        asyncio.get_running_loop().call_later(_SETTLE_SECONDS, settled)

    async def _clock(self) -> None:
        """Wake runs whose time has come: retries that are due, and time limits."""
        while True:
            now = datetime.now(UTC)
            due: list[UUID] = []
            while self._timers and self._timers[0][0] <= now:
                due.append(heapq.heappop(self._timers)[1])
            self._wake(due)
            await asyncio.sleep(0.05 if self._timers else 0.2)

    async def _sweeps(self) -> None:
        while True:
            await asyncio.sleep(self._sweep)
            self._new.set()
            await self._look()

    async def _look(self) -> None:
        """Find what no event told: ends of jobs, and cancels."""
        if not self._runs:
            return
        try:
            async with asyncio.timeout(_TURN_SECONDS), self._database.transaction() as store:
                unseen = await store.workflow_engine.unseen(self.id, _JOBS)
                canceled = await store.workflow_engine.to_cancel(self.id)
        except (Unavailable, TimeoutError) as error:
            log.warning("the rows cannot be looked at: %s", error)
            return
        self._wake([run for run, _ in unseen], [job for _, job in unseen])
        self._wake(canceled)

    # Which runs it has

    async def _claims(self) -> None:
        while True:
            await self._new.wait()
            self._new.clear()
            room = min(self._capacity - len(self._runs), _GROUP)
            if room <= 0:
                await asyncio.sleep(_PAUSE_SECONDS)
                self._new.set()
                continue
            try:
                async with asyncio.timeout(_TURN_SECONDS), self._database.transaction() as store:
                    claimed = await store.workflow_runs.claim(self.id, self._lease, room)
                    definitions = await self._definitions_of(store, claimed)
            except (Unavailable, TimeoutError) as error:
                log.warning("no run is claimed: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)
                self._new.set()
                continue
            for row in claimed:
                if row.id not in definitions:
                    continue
                # One of its own that is claimed again had lost its lease meanwhile: read it anew.
                self._forget(row.id)
                # One that was taken over was told of before.
                told = row.revision > 1
                self._runs[row.id] = LiveRun(row, definitions[row.id], told=told)
            self._wake(definitions)
            metrics.WORKFLOW_LIVE.set(len(self._runs))
            if len(claimed) == room:
                self._new.set()

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

    async def _leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            if not self._runs:
                continue
            try:
                async with asyncio.timeout(_TURN_SECONDS), self._database.transaction() as store:
                    had = set(self._runs)
                    mine = await store.workflow_runs.renew(self.id, self._lease)
            except (Unavailable, TimeoutError) as error:
                log.warning("leases are not renewed: %s", error)
                continue
            for lost in had - mine:
                self._forget(lost)

    def _forget(self, id: UUID) -> None:
        live = self._runs.pop(id, None)
        if live is None:
            return
        steps = (live.steps or {}).values()
        for step in steps:
            if step.job_id is not None:
                self._run_of.pop(step.job_id, None)
        self._requests.cancel(steps)
        metrics.WORKFLOW_LIVE.set(len(self._runs))

    # Their turns

    async def _turns(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            ids = list(self._dirty)[:_GROUP]
            for taken in ids:
                del self._dirty[taken]
            looked, self._looked = list(self._looked), {}
            # The jobs of runs whose turn is later are looked at then.
            later = [job for job in looked if self._run_of.get(job) in self._dirty]
            self._looked |= dict.fromkeys(later)
            if self._dirty:
                self._asked.set()
            runs = [self._runs[each] for each in ids if each in self._runs]
            if runs or self._done:
                await self._take(runs, [job for job in looked if job not in set(later)])

    async def _take(self, runs: Sequence[LiveRun], jobs: Sequence[UUID]) -> None:
        began = time.perf_counter()
        done, self._done = self._done, []
        turn: Turn | None = None
        try:
            async with asyncio.timeout(_TURN_SECONDS), self._database.transaction() as store:
                turn = Turn(store, self.id, self._jobs_of, self._sign, done)
                await turn.take(runs, jobs)
        except (Unavailable, TimeoutError, Retired) as error:
            # Whether it was committed is not known: the rows tell.
            if isinstance(error, Retired):
                self._jobs_of.drop()
            else:
                log.warning("a turn of %d runs is taken again: %s", len(runs), error)
                await asyncio.sleep(_PAUSE_SECONDS)
            self._again(runs)
            return
        except Exception as error:  # noqa: BLE001 - one run must not hold up the others
            self._again(runs)
            if len(runs) > 1:
                for live in runs:
                    self._dirty.pop(live.row.id, None)
                    await self._take([live], jobs)
            else:
                await self._broken(runs, error)
            return
        self._install(turn)
        metrics.WORKFLOW_TURN.observe(time.perf_counter() - began)
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                self._done += await tell(self._redis, turn)
        except (RedisError, TimeoutError, OSError) as error:
            log.warning("what a turn made is told later: %s", error or type(error).__name__)
        if self._done:
            self._asked.set()

    def _again(self, runs: Sequence[LiveRun]) -> None:
        for live in runs:
            live.steps = None
            live.stopping.clear()
            if live.row.id in self._runs:
                self._dirty[live.row.id] = None
        if runs:
            self._asked.set()

    async def _broken(self, runs: Sequence[LiveRun], error: Exception) -> None:
        for live in runs:
            log.error("run %s cannot go on", live.row.id, exc_info=error)
            said = f"the engine failed: {type(error).__name__}"
            try:
                async with asyncio.timeout(_TURN_SECONDS), self._database.transaction() as store:
                    if await store.workflow_runs.hold(self.id, [live.row.id]):
                        end = RunEnd(RunState.FAILED, None, "engine_failed", said)
                        await store.workflow_runs.end({live.row.id: end})
            except (Unavailable, TimeoutError):
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            self._dirty.pop(live.row.id, None)
            self._forget(live.row.id)

    def _install(self, turn: Turn) -> None:
        """What was committed is what the runs are now."""
        for live in turn.gone:
            self._forget(live.row.id)
        for turned in turn.turned:
            self._install_run(turned)
        count_ends(turn.canceled)

    def _install_run(self, turned: Turned) -> None:
        live = turned.live
        old, woke_at = live.steps or {}, live.wake_at
        live.row, live.steps, live.wake_at = turned.row, turned.steps, turned.wake_at
        for key, step in turned.changed.items() if old else turned.steps.items():
            before = old.get(key)
            if before is not None and before.job_id is not None:
                self._run_of.pop(before.job_id, None)
            if step.job_id is not None and not step.ended:
                self._run_of[step.job_id] = live.row.id
            live.requests.pop((step.id, step.attempt), None)
        measure(turned.row, turned.changed.values(), turned.end, datetime.now(UTC))
        if turned.end is not None:
            self._forget(live.row.id)
            return
        if live.wake_at is not None and live.wake_at != woke_at:
            heapq.heappush(self._timers, (live.wake_at, live.row.id))
        begun = turned.requests if old else interrupted(live.definition, live.steps.values())
        self._requests.begin(live.row.id, begun)
        self._requests.cancel(turned.stop)

    def _requested(self, run_id: UUID, attempt: Attempt, outcome: Outcome) -> None:
        live = self._runs.get(run_id)
        if live is not None:
            live.requests[attempt] = outcome
            self._wake([run_id])
