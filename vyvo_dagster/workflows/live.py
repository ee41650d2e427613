"""What the engine keeps in memory of the runs that it drives."""

import asyncio
import contextlib
import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from vyvo_dagster.domain.workflow.definition import Definition
from vyvo_dagster.domain.workflow.run import Outcome, Step
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.telemetry import metrics

__all__ = ["Attempt", "LiveRun", "LiveRuns", "Note"]

Attempt = tuple[UUID, int]
"""A step's id and its attempt."""


@dataclass(frozen=True, slots=True)
class Note:
    """Where the container of an attempt is, or why it has no place, and when it was started."""

    placement: Mapping[str, Any]
    started_at: datetime | None = None


@dataclass(slots=True)
class LiveRun:
    """A run under way. Its rows are the truth; `steps` is what they were at the last commit."""

    row: WorkflowRun
    definition: Definition
    steps: dict[str, Step] | None = None
    """None where they are to be read: after a claim, and after a commit whose answer was lost."""
    outcomes: dict[Attempt, Outcome] = field(default_factory=dict[Attempt, Outcome])
    """Attempts of this process that have ended and are not written yet."""
    notes: dict[Attempt, Note] = field(default_factory=dict[Attempt, Note])
    """What is known of those that have not."""
    stopping: set[UUID] = field(default_factory=set[UUID])
    """Jobs that were asked to stop."""
    wake_at: datetime | None = None
    told: bool = False
    """Whether its followers know that it has started."""


class LiveRuns:
    """The runs of one engine: which have to take a turn, and when others will."""

    def __init__(self) -> None:
        self._runs: dict[UUID, LiveRun] = {}
        self._run_of: dict[UUID, UUID] = {}
        self._dirty: dict[UUID, None] = {}
        self._looked: dict[UUID, None] = {}
        self._timers: list[tuple[datetime, UUID]] = []
        self._sooner = asyncio.Event()
        self.asked = asyncio.Event()
        """Set while a run has to take a turn."""
        self.present = asyncio.Event()
        """Set while there are runs."""

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, id: UUID) -> bool:
        return id in self._runs

    @property
    def ids(self) -> set[UUID]:
        """Ids of all."""
        return set(self._runs)

    def get(self, id: UUID) -> LiveRun | None:
        """One run, if it is here."""
        return self._runs.get(id)

    def run_of(self, job: UUID) -> UUID | None:
        """The run that waits for a job."""
        return self._run_of.get(job)

    def add(self, live: LiveRun) -> None:
        """Take a run in; it has to take a turn."""
        self._runs[live.row.id] = live
        self.present.set()
        self.wake([live.row.id])
        metrics.WORKFLOW_LIVE.set(len(self._runs))

    def drop(self, id: UUID) -> LiveRun | None:
        """Let go of a run; it, if it was here."""
        live = self._runs.pop(id, None)
        self._dirty.pop(id, None)
        if live is None:
            return None
        for step in (live.steps or {}).values():
            if step.job_id is not None:
                self._run_of.pop(step.job_id, None)
        if not self._runs:
            self.present.clear()
        metrics.WORKFLOW_LIVE.set(len(self._runs))
        return live

    def follow(self, live: LiveRun, before: Mapping[str, Step], now: Iterable[Step]) -> None:
        """Its steps are `now` what is committed; their jobs are waited for."""
        for step in now:
            old = before.get(step.key)
            if old is not None and old.job_id is not None:
                self._run_of.pop(old.job_id, None)
            if step.job_id is not None and not step.ended:
                self._run_of[step.job_id] = live.row.id

    def wake(self, runs: Collection[UUID], jobs: Collection[UUID] = ()) -> None:
        """Let runs take a turn that looks at `jobs`; those of others are passed over."""
        mine = dict.fromkeys(run for run in runs if run in self._runs)
        if mine:
            self._dirty |= mine
            self._looked |= dict.fromkeys(jobs)
            self.asked.set()

    def take(self, limit: int) -> tuple[list[LiveRun], list[UUID]]:
        """Up to `limit` runs that have to take a turn, and the jobs to look at for them."""
        self.asked.clear()
        ids = list(self._dirty)[:limit]
        for taken in ids:
            del self._dirty[taken]
        looked, self._looked = self._looked, {}
        if self._dirty:
            # The jobs of runs whose turn is later are looked at then.
            self._looked = {job: None for job in looked if self._run_of.get(job) in self._dirty}
            self.asked.set()
        return [self._runs[each] for each in ids], [j for j in looked if j not in self._looked]

    def wake_at(self, live: LiveRun, at: datetime | None) -> None:
        """When the run has to take a turn if nothing happens to it before; None is never."""
        if at is not None and at != live.wake_at:
            heapq.heappush(self._timers, (at, live.row.id))
            self._sooner.set()
        live.wake_at = at

    async def clock(self) -> None:
        """Wake runs whose time has come, until canceled."""
        while True:
            self._sooner.clear()
            now = datetime.now(UTC)
            due: list[UUID] = []
            while self._timers and self._timers[0][0] <= now:
                due.append(heapq.heappop(self._timers)[1])
            self.wake(due)
            left = (self._timers[0][0] - now).total_seconds() if self._timers else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._sooner.wait()
