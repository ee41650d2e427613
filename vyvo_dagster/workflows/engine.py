"""The engine: claims runs, wakes when something happens to them, and takes their turns.

Nothing is polled for a run that waits: it is a few rows in memory until an event of one of its jobs,
a timer or a notification wakes it. What came during one turn is the next one, for all runs at once.
A sweep of the rows finds what no event told.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from redis.exceptions import RedisError
from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.ends import count_ends
from vyvo_dagster.domain.workflow.names import Sign
from vyvo_dagster.domain.workflow.run import Outcome, RunEnd
from vyvo_dagster.domain.workflow.state import RunState
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.hub import EventHub
from vyvo_dagster.telemetry import metrics
from vyvo_dagster.workflows.announcing import tell
from vyvo_dagster.workflows.attempts import Attempts, Told, interrupted
from vyvo_dagster.workflows.claiming import Claiming
from vyvo_dagster.workflows.live import Attempt, LiveRun, LiveRuns, Note
from vyvo_dagster.workflows.measuring import measure
from vyvo_dagster.workflows.submission import JobMaker
from vyvo_dagster.workflows.turn import Retired, Turn, Turned
from vyvo_dagster.workflows.waking import Waking

__all__ = ["WorkflowEngine"]

log = logging.getLogger(__name__)

_GROUP: Final = 100
_TURN_SECONDS: Final = 30.0
_REDIS_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.5


class WorkflowEngine:
    """Drives runs until canceled; any number of engines may run.

    Args:
        attempts: what makes attempts that are no jobs, each from where it tells what came of them.
        lease: after so long without a renewal another engine takes a run over.
        capacity: runs at a time.
        sweep_seconds: how often rows are looked at for what no event told.
    """

    def __init__(
        self, database: Database, dsn: str, redis: AsyncRedis, hub: EventHub, *,
        attempts: Sequence[Callable[[Told], Attempts]], jobs: JobMaker, sign: Sign | None,
        lease: timedelta, capacity: int = 5000, sweep_seconds: float = 2.0,
    ) -> None:  # fmt: skip
        self.id = uuid7()
        self._database = database
        self._redis = redis
        self._attempts = [make(self._told) for make in attempts]
        self._jobs_of = jobs
        self._sign = sign
        self._runs = LiveRuns()
        self._claiming = Claiming(
            database, self.id, self._runs, lease=lease, capacity=capacity, forget=self._forget
        )
        self._waking = Waking(
            database, dsn, hub, self.id, self._runs, new=self._claiming.asked,
            sweep_seconds=sweep_seconds,
        )  # fmt: skip
        self._done: list[int] = []

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """All that the engine does, as loops that run until canceled, by name."""
        loops: dict[str, Coroutine[Any, Any, None]] = {
            "notifications": self._waking.notifications(), "claims": self._claiming.claims(),
            "leases": self._claiming.leases(), "sweep": self._waking.sweep(),
            "events": self._waking.events(), "timers": self._runs.clock(), "turns": self._turns(),
        }  # fmt: skip
        for each in self._attempts:
            loops.update(each.loops())
        return loops

    @property
    def live(self) -> int:
        """How many runs it drives."""
        return len(self._runs)

    async def stop(self) -> None:
        """End its requests and give its runs back at once; call it when the loops have ended."""
        for each in self._attempts:
            await each.stop()
        await self._claiming.release()

    def _forget(self, id: UUID) -> None:
        live = self._runs.drop(id)
        if live is not None:
            for each in self._attempts:
                each.leave((live.steps or {}).values())

    def _told(self, run_id: UUID, attempt: Attempt, what: Outcome | Note) -> None:
        live = self._runs.get(run_id)
        if live is None:
            return
        if isinstance(what, Note):
            live.notes[attempt] = what
        else:
            live.outcomes[attempt] = what
        self._runs.wake([run_id])

    async def _turns(self) -> None:
        while True:
            await self._runs.asked.wait()
            runs, jobs = self._runs.take(_GROUP)
            if runs or self._done:
                await self._take(runs, jobs)

    async def _take(self, runs: Sequence[LiveRun], jobs: Sequence[UUID]) -> None:
        began = time.perf_counter()
        done, self._done = self._done, []
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
            if len(runs) > 1:
                for live in runs:
                    live.steps = None
                    live.stopping.clear()
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
            self._runs.asked.set()

    def _again(self, runs: Sequence[LiveRun]) -> None:
        for live in runs:
            live.steps = None
            live.stopping.clear()
        self._runs.wake([live.row.id for live in runs])

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
                self._again([live])
                continue
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
        old = live.steps or {}
        changed = list((turned.changed if old else turned.steps).values())
        self._runs.follow(live, old, changed)
        live.row, live.steps = turned.row, turned.steps
        for step in turned.changed.values():
            live.outcomes.pop((step.id, step.attempt), None)
            if step.ended:
                live.notes.pop((step.id, step.attempt), None)
        measure(turned.row, turned.changed.values(), turned.end, datetime.now(UTC))
        begun = turned.requests if old else (
            interrupted(live.definition, live.steps.values(), live.row.priority)
        )  # fmt: skip
        for each in self._attempts:
            each.begin(live.row, begun)
            each.committed(changed)
            each.cancel(turned.stop)
        if turned.end is not None:
            self._forget(live.row.id)
            return
        self._runs.wake_at(live, turned.wake_at)
