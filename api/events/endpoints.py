"""/api/events: everything that happens to jobs, for the admin UI."""

from collections.abc import AsyncGenerator
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import Response

from api import sse
from api.auth import EventsRead, Principal
from api.context import Context, Ctx
from api.jobs.events import shown
from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.errors import Unavailable

__all__ = ["router"]

router = APIRouter(prefix="/api/events", tags=["events"])

_OWNERS_KEPT: Final = 10_000


@router.get(
    "", summary="Follow all events", response_class=Response,
    responses={
        200: {
            "description": "SSE; each event's data is `{job_id, id, data}`.",
            "content": {"text/event-stream": {}},
        }
    },
)  # fmt: skip
async def follow(
    principal: EventsRead, context: Ctx,
    kind: Annotated[list[JobEventKind] | None, Query(description="Only these kinds.")] = None,
    job_id: Annotated[UUID | None, Query(description="Only this job.")] = None,
) -> Response:  # fmt: skip
    """Live from now on; a client that is too slow misses some. A key that is no admin's sees its tenant's."""
    stream = _events(context, principal, frozenset(kind or ()), job_id)
    return sse.event_stream("events", sse.until(context.stopping, stream))


async def _events(
    context: Context, principal: Principal, kinds: frozenset[JobEventKind], job_id: UUID | None
) -> AsyncGenerator[str]:
    owners = _Owners(context)
    with context.hub.subscribe(job_id) as subscription:
        while True:
            event = await subscription.next(sse.KEEP_ALIVE_SECONDS)
            if event is None:
                yield sse.KEEP_ALIVE
                continue
            if kinds and event.kind not in kinds:
                continue
            if principal.sees not in {None, await owners.of(event.topic)}:
                continue
            data = {"job_id": event.topic, "id": event.id, "data": shown(context, event)}
            yield sse.frame(event.kind, data)


class _Owners:
    """Whose a job is; it never changes, so it is read once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[str, str] = {}

    async def of(self, topic: str) -> str | None:
        """The tenant of a job; None where it cannot be told."""
        if topic not in self._known:
            try:
                async with self._context.database.transaction() as store:
                    job = await store.jobs.get(UUID(topic), None)
            except (Unavailable, ValueError):
                return None
            if job is None:
                return None
            if len(self._known) >= _OWNERS_KEPT:
                self._known.clear()
            self._known[topic] = job.tenant
        return self._known[topic]
