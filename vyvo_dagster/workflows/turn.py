"""One turn of the engine: everything that follows in a group of runs, as one transaction.

A step's row, its job and the job's stream entry are committed together, so that a crash at any
point neither loses an attempt nor makes it twice. The runs' rows are locked first, and only where
this engine has their lease: one that another engine took over is left alone.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.cancel import cancel_locked
from vyvo_dagster.domain.job import JOB
from vyvo_dagster.domain.workflow.definition import Definition
from vyvo_dagster.domain.workflow.names import Sign
from vyvo_dagster.domain.workflow.progress import Decision, advance
from vyvo_dagster.domain.workflow.run import Outcome, Run, RunEnd, Start, Step, finish
from vyvo_dagster.domain.workflow.state import ACTIVE, StepState, step_state_of
from vyvo_dagster.errors import VyvoError
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Job
from vyvo_dagster.store.submissions import NewJob
from vyvo_dagster.store.workflow_engine import JobOutcome
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.workflows.live import LiveRun
from vyvo_dagster.workflows.measuring import step_trace
from vyvo_dagster.workflows.submission import JobMaker

__all__ = ["Retired", "Turn", "Turned"]

log = logging.getLogger(__name__)

# A step that is refused and tried again at once, over and over, must end its turn all the same.
_ROUNDS: Final = 64


class Retired(Exception):
    """A version that was taken for servable is not; nothing is to be committed."""


@dataclass(slots=True)
class Turned:
    """What a turn made of one run."""

    live: LiveRun
    row: WorkflowRun
    steps: dict[str, Step]
    changed: dict[str, Step] = field(default_factory=dict[str, Step])
    requests: list[Start] = field(default_factory=list[Start])
    """Attempts to begin that are no jobs."""
    stop: list[Step] = field(default_factory=list[Step])
    end: RunEnd | None = None
    wake_at: datetime | None = None


@dataclass(slots=True)
class Turn:
    """A turn under way, in the caller's transaction.

    Args:
        engine_id: whose lease the runs must have.
        sign: a URL that can be fetched, of an artifact's location.
        done: outbox entries that Redis has by now.
    """

    store: Store
    engine_id: UUID
    jobs_of: JobMaker
    sign: Sign | None
    done: Sequence[int] = ()
    turned: list[Turned] = field(default_factory=list[Turned])
    gone: list[LiveRun] = field(default_factory=list[LiveRun])
    """Runs that are not this engine's any more."""
    jobs: list[NewJob] = field(default_factory=list[NewJob])
    entries: Mapping[str, int] = field(default_factory=dict[str, int])
    at: int = 0
    canceled: list[Job] = field(default_factory=list[Job])

    async def take(self, runs: Sequence[LiveRun], ended_jobs: Sequence[UUID]) -> None:
        """Find out what follows, and write it.

        Raises:
            Retired: a model's version was retired meanwhile; roll back and try again.
        """
        store = self.store.workflow_runs
        held = await store.hold(self.engine_id, [live.row.id for live in runs])
        self.gone = [live for live in runs if live.row.id not in held]
        mine = [live for live in runs if live.row.id in held]
        unread = [live.row.id for live in mine if live.steps is None]
        read = await store.steps_of(unread) if unread else {}
        now = datetime.now(UTC)
        for live in mine:
            steps = read.get(live.row.id, {}) if live.steps is None else dict(live.steps)
            self.turned.append(Turned(live, held[live.row.id], steps))
        looked = {*ended_jobs, *self._active_jobs(unread)}
        found = await self.store.workflow_engine.outcomes(list(looked)) if looked else []
        outcomes = {outcome.id: outcome for outcome in found}
        for turned in self.turned:
            self._take_outcomes(turned, outcomes, now)
            await self._advance(turned, now)
        await self._write()

    def _active_jobs(self, unread: Sequence[UUID]) -> list[UUID]:
        fresh = set(unread)
        return [
            step.job_id
            for turned in self.turned
            if turned.row.id in fresh
            for step in turned.steps.values()
            if step.job_id is not None and step.state in ACTIVE
        ]

    def _take_outcomes(
        self, turned: Turned, outcomes: Mapping[UUID, JobOutcome], now: datetime
    ) -> None:
        definition = turned.live.definition
        for step in list(turned.steps.values()):
            if step.state not in ACTIVE:
                continue
            attempt = (step.id, step.attempt)
            if (note := turned.live.notes.get(attempt)) is not None:
                state = StepState.SUBMITTED if note.started_at is None else StepState.RUNNING
                step = dataclasses.replace(  # noqa: PLW2901
                    step, placement=note.placement, state=state, started_at=note.started_at
                )
                self._set(turned, step)
            if (ended := turned.live.outcomes.get(attempt)) is not None:
                self._set(turned, finish(definition, step, ended, now))
            elif step.job_id is not None and (job := outcomes.get(step.job_id)) is not None:
                self._set(turned, _after(definition, step, job, now))

    async def _advance(self, turned: Turned, now: datetime) -> None:
        row, definition = turned.row, turned.live.definition
        run = Run(
            row.id, row.inputs, row.started_at or row.created_at,
            row.cancel_requested_at is not None, row.priority,
        )  # fmt: skip
        jobs: dict[UUID, NewJob] = {}
        for _ in range(_ROUNDS):
            decision: Decision = advance(
                definition, run, turned.steps, now, new_id=uuid7, sign=self.sign
            )
            for step in decision.changed:
                self._set(turned, step)
            refused = False
            for start in decision.start:
                if start.model is None:
                    turned.requests.append(start)
                    continue
                try:
                    job = await self.jobs_of.make(
                        self.store, row.tenant, start,
                        step_trace(row, start.step.id, start.step.attempt),
                    )  # fmt: skip
                except VyvoError as error:
                    said = Outcome(StepState.FAILED, None, error.code, error.detail)
                    self._set(turned, finish(definition, start.step, said, now))
                    refused = True
                else:
                    jobs[start.step.id] = job
                    self._set(turned, dataclasses.replace(start.step, job_id=job.id))
            turned.stop, turned.end, turned.wake_at = (
                list(decision.stop), decision.end, decision.wake_at
            )  # fmt: skip
            if not refused:
                break
        self.jobs += jobs.values()

    def _set(self, turned: Turned, step: Step) -> None:
        if turned.steps.get(step.key) != step:
            turned.steps[step.key] = turned.changed[step.key] = step

    async def _write(self) -> None:
        runs = self.store.workflow_runs
        await runs.upsert_steps([s for t in self.turned for s in t.changed.values()])
        if self.jobs or self.done:
            submitted = await self.store.submissions.submit(self.jobs, done=self.done)
            if len(submitted.entries) < len(self.jobs):
                raise Retired
            self.entries, self.at = submitted.entries, submitted.at
        going_on = [t.row.id for t in self.turned if t.changed and t.end is None]
        if going_on:
            await runs.touch(going_on)
        await runs.end({t.row.id: t.end for t in self.turned if t.end is not None})
        for turned in self.turned:
            for step in turned.stop:
                await self._stop(turned, step)

    async def _stop(self, turned: Turned, step: Step) -> None:
        job_id = step.job_id
        if job_id is None or job_id in turned.live.stopping:
            return
        turned.live.stopping.add(job_id)
        if await self.store.jobs.get(job_id, None, lock=True) is None:
            return
        job = await cancel_locked(self.store, job_id)
        if job is not None and job.state in JOB.terminal:
            self.canceled.append(job)


def _after(definition: Definition, step: Step, job: JobOutcome, now: datetime) -> Step:
    if job.state not in JOB.terminal:
        return dataclasses.replace(step, state=step_state_of(job.state), started_at=job.started_at)
    outcome = Outcome(
        step_state_of(job.state), job.output, job.error_code, job.error_message, job.started_at
    )
    return finish(definition, step, outcome, job.completed_at or now)
