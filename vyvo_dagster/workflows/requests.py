"""The HTTP steps under way: a task for each attempt, kept here until it has ended."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.domain.workflow.run import Outcome, Start, Step
from vyvo_dagster.domain.workflow.state import StepState
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.workflows.attempts import Told
from vyvo_dagster.workflows.http_step import HttpSteps
from vyvo_dagster.workflows.live import Attempt

__all__ = ["Requests"]


class Requests:
    """Sends the requests of steps; implements Attempts."""

    def __init__(self, http: HttpSteps, told: Told) -> None:
        self._http = http
        self._told = told
        self._tasks: dict[Attempt, asyncio.Task[None]] = {}

    def begin(self, run: WorkflowRun, starts: Sequence[Start]) -> None:
        """Send those that are not under way."""
        for start in starts:
            attempt = (start.step.id, start.step.attempt)
            if start.http is not None and attempt not in self._tasks:
                self._tasks[attempt] = asyncio.create_task(self._send(run.id, attempt, start))

    def committed(self, steps: Iterable[Step]) -> None:
        """Nothing follows."""

    def cancel(self, steps: Iterable[Step]) -> None:
        """Give up the requests of steps, where they are under way."""
        for step in steps:
            task = self._tasks.get((step.id, step.attempt))
            if task is not None:
                task.cancel()

    def leave(self, steps: Iterable[Step]) -> None:
        """Give them up: whoever has the run sends them again."""
        self.cancel(steps)

    def loops(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """None: each request is a task of its own."""
        return {}

    async def stop(self) -> None:
        """Give up all."""
        await cancel_all(self._tasks.values())

    async def _send(self, run_id: UUID, attempt: Attempt, start: Start) -> None:
        try:
            outcome = await self._http.send(start)
        except asyncio.CancelledError:
            outcome = Outcome(StepState.CANCELED, None, "canceled", "the request was canceled")
        finally:
            self._tasks.pop(attempt, None)
        self._told(run_id, attempt, outcome)
