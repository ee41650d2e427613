"""The gateway's group commit: what shares a transaction shares nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from uuid_utils.compat import uuid7

from api.idempotency import Once
from api.jobs.gateway import Gateway, Prepared
from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.submissions import NewJob, SubmissionLine
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect

from .world import Api, Version, ready_version, unique


def prepared(version: Version, **input: Any) -> Prepared:
    job = NewJob(
        id=uuid7(), tenant="admin", model_id=version.model_id, version_id=version.id,
        version=version.name, priority=Priority.STANDARD, input=json.dumps(input), max_attempts=3, ttl_seconds=3600,
        traceparent=None,
        stream=keys.jobs(version.model_id, version.name, Priority.STANDARD, "admin"),
    )  # fmt: skip
    return Prepared(job, ready_nodes=0, mean_seconds=None)


@pytest.fixture
async def gateway(api: Api, database: Database) -> AsyncIterator[Gateway]:
    redis = connect(api.settings.redis_url)
    made = Gateway(SubmissionLine(api.settings.postgres_dsn), redis)
    tasks = {asyncio.create_task(run()) for run in (made.write_groups, made.announce_groups)}
    yield made
    await cancel_all(tasks)
    await redis.aclose()


async def test_a_group_shares_one_statement_and_keeps_its_order(
    gateway: Gateway, version: Version, database: Database
) -> None:
    jobs = [prepared(version, digit=n % 10) for n in range(300)]
    answers = await asyncio.gather(*(gateway.add(j) for j in jobs))
    assert [a.job_id for a in answers if a] == [j.job.id for j in jobs]
    # A place is exact where the queue is short; a long one's count may be a second old.
    assert [a.queue_position for a in answers if a] == list(range(1, 301))


async def test_a_row_that_postgres_refuses_leaves_its_neighbours_unharmed(
    gateway: Gateway, version: Version, database: Database
) -> None:
    jobs = [prepared(version, digit=1), prepared(version, note="\0"), prepared(version, digit=2)]
    first, bad, last = await asyncio.gather(*(gateway.add(j) for j in jobs), return_exceptions=True)
    assert isinstance(bad, InvalidInput)
    async with database.transaction() as store:
        found = [await store.jobs.get(j.job.id, None) for j in jobs]
    assert [f is not None for f in found] == [True, False, True]
    for answer, job in ((first, jobs[0]), (last, jobs[2])):
        assert not isinstance(answer, BaseException)
        assert answer is not None
        assert answer.job_id == job.job.id


async def test_a_version_that_was_retired_since_it_was_looked_up_takes_no_job(
    gateway: Gateway, version: Version, database: Database
) -> None:
    other = await ready_version(database)
    async with database.transaction() as store:
        await store.models.move(version.id, VersionState.RETIRED)
    jobs = [prepared(other, digit=1), prepared(version, digit=1)]
    kept, refused = await asyncio.gather(*(gateway.add(j) for j in jobs))
    assert kept is not None
    assert refused is None
    async with database.transaction() as store:
        assert await store.jobs.get(jobs[1].job.id, None) is None
        # In a caller's own transaction it is all or nothing.
        again = [prepared(other, digit=1), prepared(version, digit=1)]
        assert await gateway.write(store, again) is None


def keyed(version: Version, key: str, **input: Any) -> Prepared:
    return replace(prepared(version, **input), once=Once(key, "POST /api/jobs", b"x" * 32))


async def test_a_key_is_claimed_once_in_a_group_and_after_it(
    gateway: Gateway, version: Version, database: Database
) -> None:
    key = unique("k")
    jobs = [keyed(version, key, digit=n) for n in range(3)] + [prepared(version, digit=4)]
    *repeats, plain = await asyncio.gather(*(gateway.add(j) for j in jobs))
    assert plain is not None
    (first,) = [a for a in repeats if a is not None]
    assert await gateway.add(keyed(version, key, digit=5)) is None
    async with database.transaction() as store:
        found = [await store.jobs.get(j.job.id, None) for j in jobs]
        assert [f.id for f in found if f] == [first.job_id, plain.job_id]
        kept = await store.idempotency.claim("admin", key, "POST /api/jobs", b"x" * 32, {})
    assert kept == {"jobs": [first.model_dump(mode="json")]}


async def test_a_job_that_cannot_be_queued_claims_no_key(
    gateway: Gateway, version: Version, database: Database
) -> None:
    async with database.transaction() as store:
        await store.models.move(version.id, VersionState.RETIRED)
    key = unique("k")
    assert await gateway.add(keyed(version, key, digit=1)) is None
    async with database.transaction() as store:
        assert await store.idempotency.claim("admin", key, "x", b"x", {}) is None


async def test_a_key_that_another_transaction_holds_holds_nobody_else_up(
    gateway: Gateway, version: Version, database: Database
) -> None:
    key = unique("k")
    async with asyncio.timeout(30), database.transaction() as store:
        await store.idempotency.claim("admin", key, "x", b"x", {})
        held, plain = await asyncio.gather(
            gateway.add(keyed(version, key, digit=1)), gateway.add(prepared(version, digit=2))
        )
        assert held is None
        assert plain is not None


async def test_concurrent_repeats_make_one_job(
    api: Api, version: Version, database: Database
) -> None:
    body = {"model_id": version.model_id, "input": {"digit": 1}}
    header = {"Idempotency-Key": unique("k"), "Authorization": f"Bearer {api.admin_key}"}
    async with httpx.AsyncClient(base_url=api.url, timeout=10, trust_env=False) as client:
        plain = [client.post("/api/jobs", json=body, headers=header) for _ in range(20)]
        routed = [
            client.post("/api/jobs", json=body, headers={**header, "Prefer": "respond-async"})
            for _ in range(5)
        ]
        answers = await asyncio.gather(*plain, *routed)
        other = await client.post("/api/jobs", json={**body, "input": {"digit": 2}}, headers=header)
    assert {a.status_code for a in answers} == {202}
    assert len({a.text for a in answers}) == 1
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    async with database.transaction() as store:
        assert len(await store.jobs.browse(None, None, 10, None, version.model_id)) == 1


def test_a_repeat_is_answered_when_its_version_is_gone(
    admin: httpx.Client, version: Version
) -> None:
    body = {"model_id": version.model_id, "input": {"digit": 1}}
    header = {"Idempotency-Key": unique("k")}
    first = admin.post("/api/jobs", json=body, headers=header)
    path = f"/api/models/{version.model_id}/versions/v1"
    assert admin.patch(path, json={"state": "retired"}).status_code == 200
    assert admin.post("/api/jobs", json=body, headers=header).text == first.text
    fresh = {"Idempotency-Key": unique("k")}
    for _ in range(2):
        answer = admin.post("/api/jobs", json=body, headers=fresh)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_a_retirement_is_seen_by_the_next_request(admin: httpx.Client, version: Version) -> None:
    body = {"model_id": version.model_id, "input": {"digit": 1}}
    assert admin.post("/api/jobs", json=body).status_code == 202
    path = f"/api/models/{version.model_id}/versions/v1"
    assert admin.patch(path, json={"state": "retired"}).status_code == 200
    answer = admin.post("/api/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


JSON = {"content-type": "application/json"}
GOOD = {"input": {"digit": 1}}
REQUESTS: dict[str, tuple[dict[str, Any] | str, dict[str, str]]] = {
    "good": (GOOD, {}),
    "with all options": (
        {**GOOD, "version": "v1", "priority": "batch", "ttl_seconds": 5}, {},
    ),
    "a trace": ({**GOOD}, {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}),
    "a trace that is none": ({**GOOD}, {"traceparent": "x"}),
    "a trace too long": ({**GOOD}, {"traceparent": "x" * 300}),
    "not JSON": ("{", {}),
    "not UTF-8": ("\udcff", {}),
    "not an object": ("[]", {}),
    "empty": ("", {}),
    "no input": ({}, {}),
    "an option that is none": ({**GOOD, "prioritty": "batch"}, {}),
    "a wrong priority": ({**GOOD, "priority": "now"}, {}),
    "a number as text": ({**GOOD, "ttl_seconds": "5"}, {}),
    "a wrong type": ({**GOOD, "ttl_seconds": "five"}, {}),
    "a value out of range": ({**GOOD, "ttl_seconds": 0}, {}),
    "a mismatch": ({"input": {"digit": 11}}, {}),
    "no such version": ({**GOOD, "version": "v9"}, {}),
    "a bad version": ({**GOOD, "version": "a/b"}, {}),
    "a bad model": ({**GOOD, "model_id": "x"}, {}),
    "an unknown model": ({**GOOD, "model_id": "no/such"}, {}),
    "NaN": ('{"model_id": "MODEL", "input": {"digit": NaN}}', {}),
    "a NUL": ('{"model_id": "MODEL", "input": {"digit": "\\u0000"}}', {}),
    "a surrogate": ('{"model_id": "MODEL", "input": {"digit": "\\ud800"}}', {}),
    "a repeated member": ('{"model_id": "x", "model_id": "MODEL", "input": {"digit": 1}}', {}),
    "an integer without end": (
        '{"model_id": "MODEL", "input": {"digit": 1' + "0" * 5000 + "}}", {},
    ),
    "too deep": ('{"model_id": "MODEL", "input": {"digit": ' + "[" * 250 + "]" * 250 + "}}", {}),
    "too large an input": ({"input": {"digit": 1, "note": "x" * 300_000}}, {}),
    "too large a body": ({"input": {"digit": 1, "note": "x" * 1_100_000}}, {}),
    "no content type": (GOOD, {"content-type": ""}),
    "another content type": (GOOD, {"content-type": "text/plain"}),
    "a content type with parameters": (GOOD, {"content-type": "application/json; charset=utf-8"}),
    "no key": (GOOD, {"authorization": ""}),
    "a malformed key": (GOOD, {"authorization": "Bearer nonsense"}),
    "an unknown key": (GOOD, {"authorization": "Bearer vyk_00000000_" + "A" * 43}),
    "another scheme": (GOOD, {"authorization": "Basic eDp4"}),
    "a key not ASCII": (GOOD, {"authorization": "Bearer \xe4"}),
    "a key without the scope": (GOOD, {"authorization": "READER"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def reader(api: Api) -> str:
    with api.client() as client:
        made = client.post(
            "/api/keys", json={"name": "reader", "tenant": "acme", "scopes": ["jobs:read"]}
        )
    return made.json()["key"]


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
@pytest.mark.parametrize("name", REQUESTS)
def test_the_express_path_answers_as_the_route_does(
    api: Api, version: Version, reader: str, name: str, *, keyed: bool
) -> None:
    sent, special = REQUESTS[name]
    if isinstance(sent, dict):
        sent = json.dumps({"model_id": version.model_id, **sent})
    content = sent.replace("MODEL", version.model_id).encode("utf-8", "surrogateescape")
    headers = {"authorization": f"Bearer {api.admin_key}", **JSON, **special}
    if headers["authorization"] == "READER":
        headers["authorization"] = f"Bearer {reader}"
    raw = {k: v.encode("latin-1") for k, v in headers.items()}
    with httpx.Client(base_url=api.url, timeout=10, trust_env=False) as client:

        def post(key: str, **more: bytes) -> httpx.Response:
            own = {"idempotency-key": key.encode()} if keyed else {}
            return client.post("/api/jobs", content=content, headers=raw | own | more)

        one, two = unique("k"), unique("k")
        express = post(one)
        # A preference is what the express path leaves to the route.
        route = post(two, prefer=b"respond-async")
        assert _seen(express) == _seen(route)
        if keyed:
            # And what one of them took, the other knows again.
            assert _whole(post(one, prefer=b"respond-async")) == _whole(express)
            assert _whole(post(two)) == _whole(route)
    assert route.status_code < 500
    assert (express.status_code == 202) == (name in ACCEPTED)


ACCEPTED = {
    "good", "with all options", "a trace", "a trace that is none", "a repeated member",
    "a content type with parameters", "a number as text",
}  # fmt: skip


def _whole(answer: httpx.Response) -> tuple[int, dict[str, Any]]:
    return answer.status_code, answer.json()


def _seen(answer: httpx.Response) -> tuple[int, dict[str, str], dict[str, Any]]:
    body = answer.json()
    body.pop("job_id", None)
    body.pop("queue_position", None)
    headers = {k: v for k, v in answer.headers.items() if k not in {"date", "content-length"}}
    return answer.status_code, headers, body
