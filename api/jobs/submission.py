"""The gateway: jobs are checked, then written together with their stream entries."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from uuid_utils.compat import uuid7

from api.auth import Principal
from api.context import Context
from api.fields import check_json
from api.idempotency import Once, once
from api.jobs.schemas import BatchAccepted, JobAccepted, JobRequest
from vyvo_dagster.domain.job import DEFAULT_TTL, JobEventKind, JobState
from vyvo_dagster.domain.model import VersionState, parse_model_id, parse_version
from vyvo_dagster.errors import Conflict, InvalidInput, NotFound, VyvoError
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import ModelVersion
from vyvo_dagster.streams import keys

__all__ = ["submit", "traceparent_or_none"]

_INPUT_BYTES: Final = 256 << 10
_SERVABLE: Final = (VersionState.READY, VersionState.ACTIVE)
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class _Queue:
    """What the answers of one version's jobs are made of."""

    version: ModelVersion
    ready_nodes: int
    mean_seconds: float | None


def traceparent_or_none(value: str | None) -> str | None:
    """A W3C traceparent header if it is well formed."""
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None


async def submit(
    context: Context, principal: Principal, requests: Sequence[JobRequest], request: Once,
    traceparent: str | None,
) -> list[JobAccepted]:  # fmt: skip
    """Queue jobs: all, or none where one is wrong. Redis may be away: the rows hold the jobs.

    Raises:
        InvalidInput, InputSchemaMismatch: of an input; in a batch `index` says which.
        NotFound: no such model or version.
        Conflict: the version does not take jobs.
    """
    for index, each in enumerate(requests):
        with _at(index, len(requests)):
            _check(each)
    async with context.database.transaction() as store:

        async def write() -> BatchAccepted:
            return BatchAccepted(
                jobs=await _write(store, context, principal, requests, traceparent)
            )

        answer, done = await once(store, principal.tenant, request, BatchAccepted, write)
    if done:
        # Told before the relay hands the entries over, so that `queued` comes first.
        await context.announcer.events(
            [(a.job_id, JobEventKind.QUEUED, a.model_dump(mode="json", exclude={"job_id"}))
             for a in answer.jobs]
        )  # fmt: skip
        context.relay.kick()
    return answer.jobs


def _check(request: JobRequest) -> None:
    parse_model_id(request.model_id)
    if request.version is not None:
        parse_version(request.version)
    check_json(request.input, "input")
    size = len(json.dumps(request.input, ensure_ascii=False).encode())
    if size > _INPUT_BYTES:
        raise InvalidInput(
            f"the input is {size} bytes; at most {_INPUT_BYTES} are taken: upload large inputs and send their URL"
        )


async def _write(
    store: Store, context: Context, principal: Principal, requests: Sequence[JobRequest],
    traceparent: str | None,
) -> list[JobAccepted]:  # fmt: skip
    queues: dict[tuple[str, str | None], _Queue] = {}
    rows: list[dict[str, Any]] = []
    waits: list[timedelta] = []
    now = datetime.now(UTC)
    for index, each in enumerate(requests):
        with _at(index, len(requests)):
            queue = queues.get((each.model_id, each.version))
            if queue is None:
                queue = await _queue(store, each)
                queues[each.model_id, each.version] = queue
            context.input_schemas.check(queue.version, each.input)
        wait = DEFAULT_TTL[each.priority]
        if each.ttl_seconds is not None:
            wait = timedelta(seconds=each.ttl_seconds)
        waits.append(wait)
        rows.append({
            "id": uuid7(), "tenant": principal.tenant, "model_id": each.model_id,
            "version_id": queue.version.id, "version": queue.version.version,
            "priority": each.priority, "input": each.input,
            "max_attempts": context.settings.max_attempts, "expires_at": now + wait,
            "traceparent": traceparent,
        })  # fmt: skip
    await store.jobs.add_many(rows)
    await store.outbox.add_many(
        [
            (keys.jobs(r["model_id"], r["priority"]), {"id": str(r["id"]), "tenant": r["tenant"]})
            for r in rows
        ]
    )
    return [
        await _accepted(store, row["id"], queues[each.model_id, each.version], wait)
        for row, each, wait in zip(rows, requests, waits, strict=True)
    ]


async def _queue(store: Store, request: JobRequest) -> _Queue:
    version = await _version(store, request)
    return _Queue(
        version,
        await store.assignments.ready_nodes(version.id),
        await store.jobs.mean_seconds(version.model_id),
    )


async def _version(store: Store, request: JobRequest) -> ModelVersion:
    if request.version is not None:
        found = await store.models.version(request.model_id, request.version)
        if found is None:
            raise NotFound(f"no version {request.version} of {request.model_id}")
    else:
        found = await store.models.serving(request.model_id)
        if found is None:
            if await store.models.get(request.model_id) is None:
                raise NotFound(f"no model {request.model_id}")
            raise Conflict(f"{request.model_id} has no version that is ready; build one first")
    if found.state not in _SERVABLE:
        raise Conflict(
            f"{found.model_id}@{found.version} is {found.state}; only a ready version takes jobs"
        )
    return found


async def _accepted(store: Store, job_id: UUID, queue: _Queue, wait: timedelta) -> JobAccepted:
    job = await store.jobs.get(job_id, None)
    assert job is not None
    position = await store.jobs.position(job)
    eta = detail = None
    if queue.ready_nodes and queue.mean_seconds is not None:
        eta = round(queue.mean_seconds * math.ceil(position / queue.ready_nodes), 3)
    if not queue.ready_nodes:
        detail = (
            f"no ready node has {job.model_id}@{job.version}; "
            f"the job waits up to {wait.total_seconds():.0f} s"
        )
    return JobAccepted(
        job_id=job_id,
        status=JobState.QUEUED,
        queue_position=position,
        eta_seconds=eta,
        detail=detail,
    )


class _at:  # noqa: N801 - reads as the preposition that it is
    """Name the job of a batch that an error is about."""

    def __init__(self, index: int, count: int) -> None:
        self._index, self._count = index, count

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, VyvoError) and self._count > 1:
            error.detail = f"jobs.{self._index}: {error.detail}"
            error.extra["index"] = self._index
