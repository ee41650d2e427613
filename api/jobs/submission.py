"""The gateway: jobs are checked, then written together with their stream entries."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from uuid_utils.compat import uuid7

from api.auth import Principal
from api.context import Context
from api.fields import check_json
from api.idempotency import Once, once
from api.jobs import webhooks
from api.jobs.gateway import Prepared, Written
from api.jobs.schemas import BatchAccepted, JobAccepted, JobRequest
from vyvo_dagster.domain.job import DEFAULT_TIMEOUT, DEFAULT_TTL
from vyvo_dagster.domain.model import parse_model_id, parse_version
from vyvo_dagster.errors import Conflict, InvalidInput, Unavailable, VyvoError
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.submissions import NewJob
from vyvo_dagster.streams import keys
from vyvo_dagster.telemetry import tracing

__all__ = ["submit", "traceparent_or_none"]

_INPUT_BYTES: Final = 256 << 10
_TRIES: Final = 3
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def traceparent_or_none(value: str | None) -> str | None:
    """What a job's trace goes on from: this request's span, else a W3C traceparent that is well formed."""
    return tracing.traceparent() or tracing.valid(value)


async def submit(
    context: Context, principal: Principal, requests: Sequence[JobRequest], request: Once,
    traceparent: str | None,
) -> list[JobAccepted]:  # fmt: skip
    """Queue jobs: all, or none where one is wrong. Redis may be away: the rows hold the jobs.

    A lone job shares its transaction with others that come now.

    Raises:
        InvalidInput, InputSchemaMismatch: of an input; in a batch `index` says which.
        NotFound: no such model or version.
        Conflict: the version does not take jobs.
        QuotaExceeded: too many jobs of this key wait.
    """
    inputs: list[str] = []
    for index, each in enumerate(requests):
        with _at(index, len(requests)):
            inputs.append(_check(each))
            webhooks.check(context, each.webhook)
    await webhooks.check_signable(context, principal, [each.webhook for each in requests])
    for _ in range(_TRIES):
        answer = None
        if len(requests) == 1:
            answer = await _submit_shared(
                context, principal, requests, inputs, request, traceparent
            )
        if answer is None and (len(requests) > 1 or request.key is not None):
            answer = await _submit_apart(context, principal, requests, inputs, request, traceparent)
        if answer is not None:
            return answer
        # The registry said that a version takes jobs and the row says no: it was retired just now.
        context.registry.drop()
    raise Conflict("the model's versions change too fast; try again")


async def _submit_shared(
    context: Context, principal: Principal, requests: Sequence[JobRequest], inputs: Sequence[str],
    request: Once, traceparent: str | None,
) -> list[JobAccepted] | None:  # fmt: skip
    """A lone job in a group; None where its version takes no more jobs or its key is not new."""
    try:
        (prepared,) = await _prepare(context, principal, requests, inputs, traceparent)
        if request.key is not None:
            prepared = replace(prepared, once=request)
        answer = await context.gateway.add(prepared)
    except Unavailable:
        raise
    except VyvoError:
        if request.key is None:
            raise
        # A repeat gets the first answer, even where it could not be taken any more.
        return None
    return None if answer is None else [answer]


async def _submit_apart(
    context: Context, principal: Principal, requests: Sequence[JobRequest], inputs: Sequence[str],
    request: Once, traceparent: str | None,
) -> list[JobAccepted] | None:  # fmt: skip
    """Jobs in a transaction of their own; None where a version takes no more jobs."""
    written: list[Written] = []
    try:
        async with context.database.transaction() as store:

            async def write() -> BatchAccepted:
                # Within the claim of the key: a repeat is answered even when the version is gone.
                jobs = await _prepare(context, principal, requests, inputs, traceparent, store)
                made = await context.gateway.write(store, jobs)
                if made is None:
                    raise _Retired
                written.extend(made)
                return BatchAccepted(jobs=[w.answer for w in made])

            answer, _ = await once(store, principal.tenant, request, BatchAccepted, write)
    except _Retired:
        return None
    context.gateway.announce(written)
    return answer.jobs


def _check(request: JobRequest) -> str:
    """The input as JSON text, once it is known that it can be stored."""
    parse_model_id(request.model_id)
    if request.version is not None:
        parse_version(request.version)
    check_json(request.input, "input")
    text = _encode(request.input)
    size = len(text.encode())
    if size > _INPUT_BYTES:
        raise InvalidInput(
            f"the input is {size} bytes; at most {_INPUT_BYTES} are taken: upload large inputs and send their URL"
        )
    return text


async def _prepare(
    context: Context,
    principal: Principal,
    requests: Sequence[JobRequest],
    inputs: Sequence[str],
    traceparent: str | None,
    store: Store | None = None,
) -> list[Prepared]:
    prepared: list[Prepared] = []
    quota = principal.limits.max_queued
    for index, each in enumerate(requests):
        with _at(index, len(requests)):
            served = await context.registry.find(each.model_id, each.version, store)
            context.input_schemas.check(served.version, each.input)
        ttl = each.ttl_seconds
        timeout = each.timeout_seconds or served.version.resources.get("timeout_seconds", 0)
        job = NewJob(
            id=uuid7(), tenant=principal.tenant, model_id=each.model_id,
            version_id=served.version.id, version=served.version.version,
            priority=each.priority, input=inputs[index],
            max_attempts=context.settings.max_attempts,
            ttl_seconds=DEFAULT_TTL[each.priority].total_seconds() if ttl is None else ttl,
            traceparent=traceparent, webhook=webhooks.stored(each.webhook), stream=keys.jobs(
                each.model_id, served.version.version, each.priority, principal.tenant
            ),
            key_id=principal.key_id if quota is not None else None, max_queued=quota,
            timeout_seconds=timeout or DEFAULT_TIMEOUT,
        )  # fmt: skip
        prepared.append(Prepared(job, served.ready_nodes, served.mean_seconds))
    return prepared


class _Retired(Exception):
    """A version that the registry still had takes jobs no more."""


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
