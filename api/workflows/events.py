"""A run's event stream: kept events after `Last-Event-ID`, then live ones, until `run_completed`."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from api import following, sse
from api.artifacts.schemas import presigned
from api.context import Context
from vyvo_dagster.domain.workflow.events import RunEventKind, run_event, step_event
from vyvo_dagster.domain.workflow.state import RUN, StepState
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.streams.events import Event

__all__ = ["follow", "shown"]


def follow(context: Context, run: WorkflowRun, last_event_id: str | None) -> AsyncGenerator[str]:
    """The stream's text. What was never published, or is gone, is made from the rows."""
    return following.follow(context, _Run(context, run), last_event_id)


def shown(context: Context, event: Event) -> dict[str, Any]:
    """An event's data with URLs signed now."""
    data = event.data
    seconds = context.settings.presign_seconds
    for artifact in data.get("artifacts") or ():
        artifact["presigned_url"] = presigned(context.objects, artifact.get("url"), seconds)
    return data


@dataclass(slots=True)
class _Run:
    """A run that is followed; implements Followed."""

    context: Context
    row: WorkflowRun

    @property
    def topic(self) -> UUID:
        """Its id."""
        return self.row.id

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.row.state in RUN.terminal

    async def told(self, events: Sequence[Event]) -> tuple[str, bool]:
        """Its last event is its end."""
        text = "".join(self._text(event) for event in events)
        return text, any(event.kind == RunEventKind.COMPLETED for event in events)

    async def rest(self, after: str) -> AsyncGenerator[str]:
        """Where nothing is kept, the steps as they are."""
        kept = await following.kept(self.context, self.row.id, after)
        for event in kept:
            yield self._text(event)
            if event.kind == RunEventKind.COMPLETED:
                return
        run = self.row
        if after == following.START and not kept:
            async with self.context.database.transaction() as store:
                steps = (await store.workflow_runs.steps_of([run.id]))[run.id]
            for step in steps.values():
                if step.state is not StepState.PENDING:
                    yield sse.frame(RunEventKind.STEP, step_event(step))
        yield sse.frame(
            RunEventKind.COMPLETED,
            run_event(
                workflow=run.name, version=run.version, state=run.state, outputs=run.outputs,
                error_code=run.error_code, error_message=run.error_message,
            ),
        )  # fmt: skip

    async def look(self) -> None:
        """Read its row again, where the database answers."""
        try:
            async with self.context.database.transaction() as store:
                self.row = await store.workflow_runs.get(self.row.id, None) or self.row
        except Unavailable:
            return

    def _text(self, event: Event) -> str:
        return sse.frame(event.kind, shown(self.context, event), event.id)
