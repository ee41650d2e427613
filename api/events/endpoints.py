"""/api/events: everything that happens to jobs and workflow runs, for the admin UI."""

import json
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import Response

from api import sse
from api.auth import EventsRead, Principal
from api.context import Context, Ctx
from api.jobs.events import SIGNED, shown
from api.workflows.events import shown as run_shown
from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.domain.workflow.events import RunEventKind
from vyvo_dagster.streams.events import Event

__all__ = ["router"]

router = APIRouter(prefix="/api/events", tags=["events"])

_OF_RUNS: Final = frozenset(RunEventKind)


@router.get(
    "", summary="Follow all events", response_class=Response,
    responses={
        200: {
            "description": "SSE; each event's data is `{job_id, id, data}`, or `{run_id, id, data}`.",
            "content": {"text/event-stream": {}},
        }
    },
)  # fmt: skip
async def follow(
    principal: EventsRead, context: Ctx,
    kind: Annotated[list[JobEventKind | RunEventKind] | None, Query(description="Only these kinds.")] = None,
    job_id: Annotated[UUID | None, Query(description="Only this job.")] = None,
) -> Response:  # fmt: skip
    """Live from now on. A client that is too slow misses some, and an event `missed` says how many.

    A key that is no admin's sees its tenant's.
    """
    stream = _events(context, principal, frozenset(kind or ()), job_id)
    return sse.event_stream("events", sse.until(context.stopping, stream))


async def _events(
    context: Context, principal: Principal, kinds: frozenset[str], job_id: UUID | None
) -> AsyncGenerator[str]:
    def accepts(event: Event) -> bool:
        return not kinds or event.kind in kinds

    sent = time.monotonic()
    async with context.hub.subscribe(job_id, accepts) as subscription:
        while True:
            events = await subscription.next(sse.KEEP_ALIVE_SECONDS)
            texts = [
                _text(context, event)
                for event in events
                if principal.sees in {None, await context.owners.of(event.topic)}
            ]
            if missed := subscription.missed():
                texts.append(sse.frame("missed", {"count": missed}))
            if not texts and time.monotonic() - sent >= sse.KEEP_ALIVE_SECONDS:
                # Others' events are no sign of life.
                texts.append(sse.KEEP_ALIVE)
            if texts:
                yield "".join(texts)
                sent = time.monotonic()


def _text(context: Context, event: Event) -> str:
    text = event.text
    if event.kind in _OF_RUNS:
        data = {"run_id": event.topic, "id": event.id, "data": run_shown(context, event)}
        return sse.frame(event.kind, data)
    if event.kind in SIGNED:
        text = json.dumps(shown(context, event), separators=(",", ":"))
    return sse.framed(event.kind, f'{{"job_id":"{event.topic}","id":"{event.id}","data":{text}}}')
