"""`Prefer: wait=N` (RFC 7240): a submission that is answered with the finished job."""

import asyncio
import re
from collections.abc import Generator
from contextlib import aclosing, contextmanager
from typing import Final
from uuid import UUID

from redis.exceptions import RedisError

from api import sse
from api.auth import Principal
from api.context import Context
from api.jobs import service
from api.jobs.schemas import JobView
from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.domain.job import JOB, JobEventKind
from vyvo_dagster.errors import Unavailable

__all__ = ["finished", "seconds_of"]

_MOST_SECONDS: Final = 60
_WAITERS: Final = 1024
_WAIT: Final = re.compile(r'wait\s*=\s*"?(\d{1,9})"?')


def seconds_of(prefer: str | None) -> int | None:
    """How long a client would wait, at most 60 s; None where it does not say so in whole seconds."""
    for preference in (prefer or "").split(","):
        found = _WAIT.fullmatch(preference.partition(";")[0].strip().lower())
        if found is not None:  # the first of a name counts
            return min(int(found[1]), _MOST_SECONDS) or None
    return None


async def finished(
    context: Context, principal: Principal, job_id: UUID, seconds: int
) -> JobView | None:
    """The job once it has ended; None where it does not in time, or too many wait already.

    Waits for the job's event, not by looking again and again; the row decides.
    """
    with _place(context) as free:
        if not free:
            return None
        try:
            async with asyncio.timeout(seconds):
                await _ended(context, job_id)
        except (TimeoutError, RedisError):
            pass  # an event may have been missed; the row is looked at once
    try:
        async with context.database.transaction() as store:
            job = await service.find(store, principal, job_id)
            return await service.view(store, context, job) if job.state in JOB.terminal else None
    except Unavailable:
        return None  # it is queued, and that is what the client is told


@contextmanager
def _place(context: Context) -> Generator[bool]:
    free = context.waiters < _WAITERS and not context.stopping.is_set()
    context.waiters += free
    try:
        yield free
    finally:
        context.waiters -= free


async def _ended(context: Context, job_id: UUID) -> None:
    stopping = asyncio.create_task(context.stopping.wait())
    following = asyncio.create_task(_completed(context, job_id))
    try:
        await asyncio.wait({stopping, following}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        await cancel_all({stopping, following})


async def _completed(context: Context, job_id: UUID) -> None:
    async with aclosing(context.hub.follow(job_id, "0-0", sse.KEEP_ALIVE_SECONDS)) as found:
        async for events in found:
            if any(event.kind == JobEventKind.COMPLETED for event in events):
                return
