"""A run's event stream: kept events after `Last-Event-ID`, then live ones, until `run_completed`."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from redis.exceptions import RedisError

from api import sse
from api.artifacts.schemas import presigned
from api.context import Context
from vyvo_dagster.domain.workflow.events import RunEventKind, run_event, step_event
from vyvo_dagster.domain.workflow.state import RUN, StepState
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.streams.events import Event

__all__ = ["follow", "shown"]

_ID: Final = re.compile(r"\d{1,20}(-\d{1,20})?")
_AWAY_SECONDS: Final = 1.0


async def follow(
    context: Context, run: WorkflowRun, last_event_id: str | None
) -> AsyncGenerator[str]:
    """The stream's text. What was never published, or is gone, is made from the rows."""
    last = last_event_id if last_event_id and _ID.fullmatch(last_event_id) else "0-0"
    fresh = last == "0-0"
    while True:
        if run.state in RUN.terminal:
            async for text in _ended(context, run, last, fresh):
                yield text
            return
        try:
            async with aclosing(context.hub.follow(run.id, last, sse.KEEP_ALIVE_SECONDS)) as found:
                async for events in found:
                    if not events:
                        yield sse.KEEP_ALIVE
                        break
                    last, fresh = events[-1].id, False
                    yield "".join(_text(context, event) for event in events)
                    if any(event.kind == RunEventKind.COMPLETED for event in events):
                        return
        except RedisError:
            # The run goes on without Redis; its row is looked at until events come again.
            yield sse.KEEP_ALIVE
            await asyncio.sleep(_AWAY_SECONDS)
        run = await _row(context, run)


def shown(context: Context, event: Event) -> dict[str, Any]:
    """An event's data with URLs signed now."""
    data = event.data
    seconds = context.settings.presign_seconds
    for artifact in data.get("artifacts") or ():
        artifact["presigned_url"] = presigned(context.objects, artifact.get("url"), seconds)
    return data


def _text(context: Context, event: Event) -> str:
    return sse.frame(event.kind, shown(context, event), event.id)


async def _ended(context: Context, run: WorkflowRun, last: str, fresh: bool) -> AsyncGenerator[str]:
    try:
        kept = await context.hub.replay(run.id, last)
    except RedisError:
        kept = []
    for event in kept:
        yield _text(context, event)
        if event.kind == RunEventKind.COMPLETED:
            return
    if fresh and not kept:
        async with context.database.transaction() as store:
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


async def _row(context: Context, run: WorkflowRun) -> WorkflowRun:
    try:
        async with context.database.transaction() as store:
            return await store.workflow_runs.get(run.id, None) or run
    except Unavailable:
        return run
