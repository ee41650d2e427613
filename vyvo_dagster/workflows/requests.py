"""The HTTP steps under way: a task for each attempt, kept here until it has ended."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.domain.workflow.definition import Definition
from vyvo_dagster.domain.workflow.operations import HTTP
from vyvo_dagster.domain.workflow.run import Outcome, Start, Step
from vyvo_dagster.domain.workflow.state import StepState
from vyvo_dagster.workflows.http_step import HttpSteps
from vyvo_dagster.workflows.live import Attempt

__all__ = ["Requests", "interrupted"]

Ended = Callable[[UUID, Attempt, Outcome], None]


def interrupted(definition: Definition, steps: Iterable[Step]) -> list[Start]:
    """The HTTP steps that rows say are under way: of an engine that is gone, to be sent again."""
    return [
        Start(
            step, None, step.input, step.input, definition.priority,
            definition.steps[step.name].timeout_seconds,
        )
        for step in steps
        if step.state is StepState.RUNNING
        and definition.steps[step.name].operation == HTTP
        and (step.map_index is not None or not definition.steps[step.name].mapped)
    ]  # fmt: skip


class Requests:
    """Sends the requests of steps.

    Args:
        ended: told how each ended, with its run and attempt.
    """

    def __init__(self, http: HttpSteps, ended: Ended) -> None:
        self._http = http
        self._ended = ended
        self._tasks: dict[Attempt, asyncio.Task[None]] = {}

    def begin(self, run_id: UUID, starts: Sequence[Start]) -> None:
        """Send those that are not under way."""
        for start in starts:
            attempt = (start.step.id, start.step.attempt)
            if attempt not in self._tasks:
                self._tasks[attempt] = asyncio.create_task(self._send(run_id, attempt, start))

    def cancel(self, steps: Iterable[Step]) -> None:
        """Give up the requests of steps, where they are under way."""
        for step in steps:
            task = self._tasks.get((step.id, step.attempt))
            if task is not None:
                task.cancel()

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
        self._ended(run_id, attempt, outcome)
