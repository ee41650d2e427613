"""Attempts that the engine's process makes itself, rather than a job: requests and containers."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.definition import Definition
from vyvo_dagster.domain.workflow.operations import HTTP
from vyvo_dagster.domain.workflow.run import Outcome, Start, Step
from vyvo_dagster.domain.workflow.state import ACTIVE
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.workflows.live import Attempt, Note

__all__ = ["Attempts", "Told", "interrupted"]

Told = Callable[[UUID, Attempt, Outcome | Note], None]
"""What became of an attempt of a run: how it ended, or where it is. Called on the loop."""


class Attempts(Protocol):
    """Makes attempts of one kind, and passes over those of others. Methods do not wait."""

    def begin(self, run: WorkflowRun, starts: Sequence[Start]) -> None:
        """Make those that are not under way; their rows are committed."""
        ...

    def committed(self, steps: Iterable[Step]) -> None:
        """What was told of attempts is in their rows by now, their ends too."""
        ...

    def cancel(self, steps: Iterable[Step]) -> None:
        """Their run wants them to end; what comes of it is told."""
        ...

    def leave(self, steps: Iterable[Step]) -> None:
        """They are another engine's, or nobody's, by now."""
        ...

    def loops(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """What runs until canceled, by name."""
        ...

    async def stop(self) -> None:
        """The loops have ended; leave everything for the engine that comes next."""
        ...


def interrupted(
    definition: Definition, steps: Iterable[Step], priority: Priority | None
) -> list[Start]:
    """Attempts that rows say are under way in a process: one that is gone, so they go on here."""
    found: list[Start] = []
    for step in steps:
        of = definition.steps[step.name]
        items = of.mapped and step.map_index is None
        if step.state not in ACTIVE or step.job_id is not None or items:
            continue
        found.append(Start(
            step=step, model=None, http=step.input if of.operation == HTTP else None,
            container=of.container, input=step.input,
            priority=priority or definition.priority_of(of), timeout_seconds=of.timeout_seconds,
        ))  # fmt: skip
    return found
