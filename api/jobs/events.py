"""A job's event stream: kept events after `Last-Event-ID`, then live ones, until `completed`."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final
from uuid import UUID

from redis.exceptions import RedisError

from api import sse
from api.artifacts.schemas import artifact_view, presigned
from api.context import Context
from vyvo_dagster.dispatch.requeue import completion
from vyvo_dagster.domain.job import JOB, JobEventKind
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.records import Job
from vyvo_dagster.streams.events import Event

__all__ = ["SIGNED", "follow", "shown"]

SIGNED: Final = frozenset({JobEventKind.ARTIFACT, JobEventKind.COMPLETED})
"""Kinds whose data names artifacts; all others are passed on as they were published."""

_ID: Final = re.compile(r"\d{1,20}(-\d{1,20})?")
_AWAY_SECONDS: Final = 1.0


async def follow(context: Context, job: Job, last_event_id: str | None) -> AsyncGenerator[str]:
    """The stream's text. A `completed` that was never published, or is gone, is made from the row."""
    last = last_event_id if last_event_id and _ID.fullmatch(last_event_id) else "0-0"
    while True:
        if job.state in JOB.terminal:
            async for text in _ended(context, job, last):
                yield text
            return
        try:
            async with aclosing(context.hub.follow(job.id, last, sse.KEEP_ALIVE_SECONDS)) as found:
                async for events in found:
                    if not events:
                        yield sse.KEEP_ALIVE
                        break
                    last = events[-1].id
                    text, job, ended = await _told(context, job, events)
                    if text:
                        yield text
                    if ended:
                        return
        except RedisError:
            # The row goes on without Redis; it is looked at once a second until events come again.
            yield sse.KEEP_ALIVE
            await asyncio.sleep(_AWAY_SECONDS)
        job = await _row(context, job)


async def _told(context: Context, job: Job, events: list[Event]) -> tuple[str, Job, bool]:
    """The text of events up to the end, in one piece; the job, as far as known; whether it ended."""
    texts: list[str] = []
    for event in events:
        ends = event.kind == JobEventKind.COMPLETED
        if ends and job.requeued_at is not None:
            job = await _row(context, job)
            if not _is_end(job, event):
                continue
        texts.append(_text(context, event))
        if ends:
            return "".join(texts), job, True
    return "".join(texts), job, False


async def _ended(context: Context, job: Job, last: str) -> AsyncGenerator[str]:
    for event in await _kept(context, job.id, last):
        ends = event.kind == JobEventKind.COMPLETED
        if ends and not _is_end(job, event):
            continue
        yield _text(context, event)
        if ends:
            return
    yield sse.frame(JobEventKind.COMPLETED, await _of_row(context, job))


def shown(context: Context, event: Event) -> dict[str, Any]:
    """An event's data with URLs signed now: what is kept may be older than a signature's life."""
    data = event.data
    if event.kind == JobEventKind.ARTIFACT:
        return _signed(context, data)
    if event.kind == JobEventKind.COMPLETED:
        data["artifacts"] = [_signed(context, a) for a in data.get("artifacts", ())]
    return data


def _is_end(job: Job, event: Event) -> bool:
    """Whether a `completed` is the end of the row: one from before a requeue is not."""
    return job.requeued_at is None or (
        job.state in JOB.terminal
        and (event.data.get("attempt"), event.data.get("status")) == (job.attempt, job.state)
    )


def _text(context: Context, event: Event) -> str:
    if event.kind not in SIGNED:
        return sse.framed(event.kind, event.text, event.id)
    return sse.frame(event.kind, shown(context, event), event.id)


def _signed(context: Context, artifact: Mapping[str, Any]) -> dict[str, Any]:
    seconds = context.settings.presign_seconds
    url = presigned(context.objects, artifact.get("url"), seconds)
    return {**artifact, "presigned_url": url}


async def _kept(context: Context, job_id: UUID, last: str) -> list[Event]:
    try:
        return await context.hub.replay(job_id, last)
    except RedisError:
        return []


async def _row(context: Context, job: Job) -> Job:
    try:
        async with context.database.transaction() as store:
            return await store.jobs.get(job.id, None) or job
    except Unavailable:
        return job


async def _of_row(context: Context, job: Job) -> dict[str, Any]:
    seconds = context.settings.presign_seconds
    async with context.database.transaction() as store:
        found = await store.artifacts.of_job(job.id)
    artifacts = [
        artifact_view(a, context.objects, seconds).model_dump(
            mode="json", exclude={"job_id", "created_at"}
        )
        for a in found
    ]
    return completion(job, artifacts)
