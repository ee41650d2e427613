"""The typed clients against the real api, over connections that fail."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import BaseModel

from vyvo_dagster.client import AsyncClient, Client, JobSpec, RetryPolicy
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.errors import (
    Conflict,
    IllegalTransition,
    InputSchemaMismatch,
    InvalidInput,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
    VyvoError,
)
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.store.database import Database

from .faulty_proxy import FaultyProxy, answering, cutting, dropping, swallowing
from .test_job_events import finished
from .test_jobs import jobs_of
from .world import Agent, Api, Version, dispatch, load

QUICK = RetryPolicy(first=0.01)


def refusal(status: str, code: str, *headers: str) -> bytes:
    body = f'{{"code":"{code}","detail":"come again","limit":5}}'
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close",
                        "Content-Type: application/problem+json", *headers))  # fmt: skip
    return f"{head}\r\n\r\n{body}".encode()


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, api.admin_key, retry=QUICK) as made:
        yield made


@pytest.fixture
async def awaited(api: Api) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(api.url, api.admin_key, retry=QUICK) as made:
        yield made


@pytest.fixture
def proxy(api: Api) -> Iterator[FaultyProxy]:
    made = FaultyProxy(api.url)
    yield made
    made.close()


@pytest.fixture
def through(api: Api, proxy: FaultyProxy) -> Iterator[Client]:
    with Client(proxy.url, api.admin_key, retry=QUICK) as made:
        yield made


def test_both_clients_have_the_same_methods() -> None:
    def shape(cls: type) -> dict[str, Any]:
        return {
            name: str(inspect.signature(member).replace(return_annotation=None))
            for name, member in inspect.getmembers(cls, inspect.isfunction)
            if not name.startswith("_")
        }

    assert shape(Client) == shape(AsyncClient)


def test_answers_are_frozen_values(client: Client, version: Version) -> None:
    accepted = client.submit(version.model_id, {"digit": 1}, priority=Priority.BATCH)
    job = client.job(accepted.job_id)
    assert isinstance(job, BaseModel)
    assert (job.priority, job.queue_position, job.ended) == (Priority.BATCH, 1, False)
    with pytest.raises(ValueError, match="frozen"):
        job.progress = 1.0  # type: ignore[misc]
    assert client.set_priority(job.job_id, "interactive").priority is Priority.INTERACTIVE
    assert client.cancel(job.job_id).status == "canceled"
    assert client.wait(job.job_id, 5).ended


def test_lists_are_paged(client: Client, version: Version) -> None:
    specs = [JobSpec(model_id=version.model_id, input={"digit": n}) for n in range(3)]
    ids = [a.job_id for a in client.submit_batch(specs)]
    first = client.jobs(model_id=version.model_id, limit=2)
    assert first.next_cursor is not None
    rest = client.jobs(model_id=version.model_id, cursor=first.next_cursor)
    assert [j.job_id for j in (*first.items, *rest.items)] == ids[::-1]
    assert rest.next_cursor is None
    assert client.jobs(model_id=version.model_id, status="failed").items == ()


def test_webhooks(client: Client, version: Version) -> None:
    assert client.set_webhook_secret().startswith("whsec_")
    hook = {"url": "https://hooks.invalid/x", "events": ["canceled"]}
    job_id = client.submit(version.model_id, {"digit": 1}, webhook=hook).job_id
    assert client.webhooks(job_id) == ()
    client.cancel(job_id)
    (delivery,) = client.webhooks(job_id)
    assert (delivery.event, delivery.state, delivery.tries) == ("job.canceled", "pending", 0)
    with pytest.raises(IllegalTransition):
        client.redeliver(job_id, delivery.id)


async def test_the_awaited_client_does_the_same(awaited: AsyncClient, version: Version) -> None:
    accepted = await awaited.submit(version.model_id, {"digit": 1})
    assert (await awaited.job(accepted.job_id)).status == "queued"
    assert version.name in [v.version for v in (await awaited.versions(version.model_id)).items]
    await awaited.cancel(accepted.job_id)
    kinds = [event.kind async for event in awaited.job_events(accepted.job_id)]
    assert kinds == ["queued", "completed"]
    with pytest.raises(NotFound):
        await awaited.job("00000000-0000-7000-8000-000000000000")


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda c, v: c.job("00000000-0000-7000-8000-000000000000"), NotFound),
        (lambda c, v: c.job("../keys"), NotFound),
        (lambda c, v: c.job("nonsense"), InvalidInput),
        (lambda c, v: c.submit(v.model_id, {"digit": 99}), InputSchemaMismatch),
        (lambda c, v: c.version(v.model_id, "v9"), NotFound),
        (lambda c, v: c.submit_build({}), InvalidInput),
    ],
)
def test_problems_are_errors_of_their_class(
    client: Client, version: Version, act: Callable[[Client, Version], Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        act(client, version)
    assert type(raised.value) is error


def test_a_problem_keeps_its_members(client: Client, version: Version, api: Api) -> None:
    with pytest.raises(InputSchemaMismatch) as raised:
        client.submit(version.model_id, {"digit": 99})
    assert raised.value.extra["errors"][0]["path"]
    with Client(api.url, "vyk_00000000_x") as stranger, pytest.raises(Unauthenticated):
        stranger.nodes()
    done = client.submit(version.model_id, {"digit": 1}).job_id
    client.cancel(done)
    with pytest.raises(IllegalTransition):
        client.set_priority(done, "batch")


async def test_a_lost_answer_submits_once(
    through: Client, proxy: FaultyProxy, version: Version, database: Database
) -> None:
    proxy.faults += [dropping, swallowing]
    accepted = await asyncio.to_thread(through.submit, version.model_id, {"digit": 1})
    assert proxy.connections == 3
    assert await jobs_of(database, version.model_id) == 1
    assert through.job(accepted.job_id).status == "queued"


def test_retry_after_is_honoured(through: Client, proxy: FaultyProxy, version: Version) -> None:
    proxy.faults += [
        answering(refusal("429 Too Many Requests", "rate_limited", "Retry-After: 1")),
        answering(refusal("503 Service Unavailable", "unavailable", "Retry-After: 0")),
    ]
    began = time.monotonic()
    assert through.submit(version.model_id, {"digit": 1}).status == "queued"
    assert 1.0 <= time.monotonic() - began < 3.0
    assert proxy.connections == 3


def test_a_retry_after_that_is_too_long_is_an_error_at_once(
    through: Client, proxy: FaultyProxy, version: Version
) -> None:
    proxy.faults += [answering(refusal("429 Too Many Requests", "quota", "Retry-After: 3600"))]
    began = time.monotonic()
    with pytest.raises(RateLimited) as raised:
        through.submit(version.model_id, {"digit": 1})
    assert time.monotonic() - began < 1.0
    assert (raised.value.code, raised.value.status) == ("quota", 429)
    assert raised.value.extra == {"limit": 5}


async def test_a_redirect_is_no_success(through: Client, proxy: FaultyProxy, api: Api) -> None:
    moved = (
        b"HTTP/1.1 302 Found\r\nLocation: /else\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    )
    job_id = str(UUID(int=1))
    proxy.faults += [answering(moved)] * 4
    with pytest.raises(VyvoError, match="302 Found"):
        through.request("GET", "/api/jobs")
    with pytest.raises(VyvoError, match="302 Found"):
        next(through.job_events(job_id))
    async with AsyncClient(proxy.url, api.admin_key, retry=QUICK) as client:
        with pytest.raises(VyvoError, match="302 Found"):
            await client.request("GET", "/api/jobs")
        with pytest.raises(VyvoError, match="302 Found"):
            await anext(client.job_events(job_id))


def test_it_gives_up(through: Client, proxy: FaultyProxy) -> None:
    proxy.faults += [dropping] * 5
    with pytest.raises(Unavailable, match="cannot reach the api"):
        through.nodes()
    assert proxy.connections == 5


def test_what_may_not_be_repeated_is_not(
    through: Client, proxy: FaultyProxy, version: Version
) -> None:
    proxy.faults += [swallowing]
    body = {"model_id": version.model_id, "input": {"digit": 1}}
    with pytest.raises(Unavailable):
        through.request("POST", "/api/jobs", json=body)
    # The api may still be writing when its client has given up.
    deadline = time.monotonic() + 10
    while not through.jobs(model_id=version.model_id).items:
        assert time.monotonic() < deadline, "the request that was sent was not done"
    time.sleep(0.2)
    assert len(through.jobs(model_id=version.model_id).items) == 1
    through.submit(version.model_id, {"digit": 1}, idempotency_key=version.model_id)
    with pytest.raises(Conflict):
        through.submit(version.model_id, {"digit": 2}, idempotency_key=version.model_id)


async def test_a_stream_that_is_cut_goes_on_where_it_stopped(
    through: Client, proxy: FaultyProxy, admin: httpx.Client, agent: Agent, version: Version,
    database: Database,
) -> None:  # fmt: skip
    job_id, _ = await finished(admin, agent, version, database)
    proxy.faults += [
        cutting(700), answering(refusal("503 Service Unavailable", "unavailable", "Retry-After: 0")),
        cutting(600), dropping, cutting(650), cutting(700),
    ]  # fmt: skip
    events = await asyncio.to_thread(lambda: list(through.job_events(job_id)))
    assert [e.kind for e in events] == [
        "queued", "started", "progress", "log", "progress", "log", "artifact", "completed",
    ]  # fmt: skip
    assert events[-1].data["output"] == {"seed": 1}
    assert proxy.connections > 5


async def test_text_that_looks_like_a_line_end_stays_in_its_event(
    client: Client, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    job_id = str(client.submit(version.model_id, {"digit": 1}).job_id)
    job = await dispatch(database, job_id, agent, await load(admin, agent, version))
    agent.post(f"/api/jobs/{job.id}/progress", {"attempt": 1, "logs": ["a\u2028b\u0085c"]})
    agent.complete(job.id, 1, "canceled")
    logs = [e.data["lines"] for e in client.job_events(job_id) if e.kind == "log"]
    assert logs == [["a\u2028b\u0085c"]]


async def test_artifacts_are_saved_whole_or_not_at_all(
    client: Client, awaited: AsyncClient, api: Api, tmp_path: Path
) -> None:
    store = ObjectStore(api.s3)
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    bucket = f"{api.s3.bucket_prefix}image"
    store.put_file(bucket, "client/one.png", source)
    url = store.presign_get(f"s3://{bucket}/client/one.png", 60)
    saved = client.save(url, tmp_path / "a" / "one.png")
    assert saved.read_bytes() == source.read_bytes() == client.download(url)
    again = await awaited.save(url, tmp_path / "b" / "one.png")
    assert again.read_bytes() == source.read_bytes() == await awaited.download(url)
    gone = store.presign_get(f"s3://{bucket}/client/none.png", 60)
    with pytest.raises(NotFound):
        client.save(gone, tmp_path / "c" / "none.png")
    assert list((tmp_path / "c").glob("*")) == []


async def test_a_download_is_tried_again_while_the_store_is_starting(
    client: Client, awaited: AsyncClient, api: Api, tmp_path: Path
) -> None:
    assert api.s3.endpoint is not None
    proxy = FaultyProxy(api.s3.endpoint)
    try:
        store = ObjectStore(
            api.s3.model_copy(update={"endpoint": proxy.url, "public_endpoint": None})
        )
        bucket, source = f"{api.s3.bucket_prefix}image", tmp_path / "source"
        source.write_bytes(b"x" * 100_000)
        store.put_file(bucket, "client/two.png", source)
        url = store.presign_get(f"s3://{bucket}/client/two.png", 60)
        starting = answering(refusal("500 Internal Server Error", "none"))
        proxy.faults += [starting, dropping]
        assert client.download(url) == source.read_bytes()
        proxy.faults += [dropping, starting]
        saved = await awaited.save(url, tmp_path / "two.png")
        assert saved.read_bytes() == source.read_bytes()
        proxy.faults += [starting] * 5
        with pytest.raises(Unavailable, match="answered 500"):
            client.download(url)
    finally:
        proxy.close()
