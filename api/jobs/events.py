"""A job's event stream: kept events after `Last-Event-ID`, then live ones, until `completed`."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from api import following, sse
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


def follow(context: Context, job: Job, last_event_id: str | None) -> AsyncGenerator[str]:
    """The stream's text. A `completed` that was never published, or is gone, is made from the row."""
    return following.follow(context, _Job(context, job), last_event_id)


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


@dataclass(slots=True)
class _Job:
    """A job that is followed; implements Followed."""

    context: Context
    row: Job

    @property
    def topic(self) -> UUID:
        """Its id."""
        return self.row.id

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.row.state in JOB.terminal

    async def told(self, events: Sequence[Event]) -> tuple[str, bool]:
        """A `completed` from before a requeue is passed over."""
        texts: list[str] = []
        for event in events:
            ends = event.kind == JobEventKind.COMPLETED
            if ends and self.row.requeued_at is not None:
                await self.look()
                if not _is_end(self.row, event):
                    continue
            texts.append(_text(self.context, event))
            if ends:
                return "".join(texts), True
        return "".join(texts), False

    async def rest(self, after: str) -> AsyncGenerator[str]:
        """The end is the row's, where its event is gone."""
        for event in await following.kept(self.context, self.row.id, after):
            ends = event.kind == JobEventKind.COMPLETED
            if ends and not _is_end(self.row, event):
                continue
            yield _text(self.context, event)
            if ends:
                return
        yield sse.frame(JobEventKind.COMPLETED, await _of_row(self.context, self.row))

    async def look(self) -> None:
        """Read its row again, where the database answers."""
        try:
            async with self.context.database.transaction() as store:
                self.row = await store.jobs.get(self.row.id, None) or self.row
        except Unavailable:
            return


async def _of_row(context: Context, job: Job) -> dict[str, Any]:
    seconds = context.settings.presign_seconds
    async with context.database.transaction() as store:
        found = await store.artifacts.of_job(job.id)
    artifacts = [
        artifact_view(a, context.objects, seconds).model_dump(
            mode="json", exclude={"job_id", "created_at", "state", "deleted_at"}
        )
        for a in found
    ]
    return completion(job, artifacts)
