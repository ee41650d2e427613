"""What an API key may submit: a rate by token bucket, and a quota of jobs that wait."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from vyvo_dagster.store.database import Database

from .test_jobs import jobs_of
from .world import Api, Version, unique


class Key:
    """A key with limits, and a client of it."""

    def __init__(self, api: Api, admin: httpx.Client, **limits: Any) -> None:
        body = {
            "name": "limited",
            "tenant": unique("t"),
            "scopes": ["jobs:write"],
            "limits": limits,
        }
        answer = admin.post("/api/keys", json=body)
        assert answer.status_code == 201, answer.text
        self.shown: dict[str, Any] = answer.json()
        self.client = api.client(self.shown["key"])

    def submit(self, version: Version, path: str = "plain") -> httpx.Response:
        body = {"model_id": version.model_id, "input": {"digit": 1}}
        headers = {} if path == "plain" else {"idempotency-key": unique("k")}
        if path == "route":
            headers["prefer"] = "respond-async"
        return self.client.post("/api/jobs", json=body, headers=headers)

    def batch(self, version: Version, count: int) -> httpx.Response:
        one = {"model_id": version.model_id, "input": {"digit": 1}}
        return self.client.post("/api/jobs/batch", json={"jobs": [one] * count})


@pytest.fixture
def limited(api: Api, admin: httpx.Client) -> Iterator[Any]:
    made: list[Key] = []

    def make(**limits: Any) -> Key:
        made.append(Key(api, admin, **limits))
        return made[-1]

    yield make
    for key in made:
        key.client.close()


def test_a_key_without_limits_is_told_of_none(admin: httpx.Client, version: Version) -> None:
    answer = admin.post("/api/jobs", json={"model_id": version.model_id, "input": {"digit": 1}})
    assert answer.status_code == 202
    assert not [name for name in answer.headers if name.startswith("ratelimit")]


@pytest.mark.parametrize("path", ["plain", "keyed", "route"])
def test_a_spent_bucket_says_when_to_come_again(limited: Any, version: Version, path: str) -> None:
    key: Key = limited(rate_per_second=0.1, burst=2)
    assert key.shown["limits"] == {"rate_per_second": 0.1, "burst": 2, "max_queued": None}
    answers = [key.submit(version, path) for _ in range(3)]
    assert [a.status_code for a in answers] == [202, 202, 429]
    assert {a.headers["ratelimit-policy"] for a in answers} == {'"jobs";q=2;w=20'}
    assert answers[0].headers["ratelimit"] == '"jobs";r=1;t=10'
    assert answers[2].headers["ratelimit"] == '"jobs";r=0;t=20'
    assert answers[2].json()["code"] == "rate_limited"
    assert answers[2].headers["retry-after"] == "10"


def test_a_bucket_fills_again(limited: Any, version: Version) -> None:
    key: Key = limited(rate_per_second=5, burst=1)
    assert key.submit(version).status_code == 202
    assert key.submit(version).status_code == 429
    time.sleep(0.25)
    assert key.submit(version).status_code == 202


def test_a_batch_takes_a_token_for_each_job(limited: Any, version: Version) -> None:
    key: Key = limited(rate_per_second=0.01, burst=5)
    assert key.batch(version, 4).status_code == 202
    refused = key.batch(version, 2)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert refused.headers["ratelimit"].startswith('"jobs";r=1;')
    assert key.submit(version).status_code == 202
    never = key.batch(version, 6)
    assert (never.status_code, never.json()["code"]) == (422, "invalid_input")


def test_an_admin_changes_the_limits(limited: Any, admin: httpx.Client, version: Version) -> None:
    key: Key = limited(rate_per_second=0.01, burst=1)
    assert [key.submit(version).status_code for _ in range(2)] == [202, 429]
    path = f"/api/keys/{key.shown['id']}"
    answer = admin.patch(path, json={"limits": {"max_queued": 5}})
    assert answer.json()["limits"] == {"rate_per_second": None, "burst": None, "max_queued": 5}
    assert key.submit(version).status_code == 202
    for limits in ({"burst": 3}, {"rate_per_second": 0}, {"max_queued": 0}, {"rate": 1}):
        answer = admin.patch(path, json={"limits": limits})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input"), limits
    assert key.client.patch(path, json={"limits": {}}).status_code == 403
    nobody = "/api/keys/00000000-0000-7000-8000-000000000000"
    assert admin.patch(nobody, json={"limits": {}}).status_code == 404


@pytest.mark.parametrize("path", ["plain", "keyed", "route"])
def test_a_quota_holds_what_waits(
    limited: Any, admin: httpx.Client, version: Version, path: str
) -> None:
    key, other = limited(max_queued=2), limited(max_queued=1)
    first, second, third = (key.submit(version, path) for _ in range(3))
    assert [a.status_code for a in (first, second, third)] == [202, 202, 429]
    assert third.json()["code"] == "quota_exceeded"
    assert "retry-after" in third.headers
    assert other.submit(version, path).status_code == 202
    assert admin.post(f"/api/jobs/{first.json()['job_id']}/cancel").status_code == 200
    assert key.submit(version, path).status_code == 202


def test_a_job_that_is_queued_again_counts_as_a_new_one(limited: Any, version: Version) -> None:
    slow: Key = limited(rate_per_second=0.01, burst=2)
    job = slow.submit(version).json()["job_id"]
    slow.client.post(f"/api/jobs/{job}/cancel")
    again = slow.client.post(f"/api/jobs/{job}/requeue")
    assert (again.status_code, again.headers["ratelimit"][:10]) == (202, '"jobs";r=0')
    slow.client.post(f"/api/jobs/{job}/cancel")
    refused = slow.client.post(f"/api/jobs/{job}/requeue")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")

    few: Key = limited(max_queued=1)
    first = few.submit(version).json()["job_id"]
    few.client.post(f"/api/jobs/{first}/cancel")
    second = few.submit(version).json()["job_id"]
    refused = few.client.post(f"/api/jobs/{first}/requeue")
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    few.client.post(f"/api/jobs/{second}/cancel")
    assert few.client.post(f"/api/jobs/{first}/requeue").status_code == 202
    assert few.submit(version).status_code == 429


async def test_a_quota_holds_inside_a_group_and_for_a_batch(
    limited: Any, version: Version, database: Database
) -> None:
    key: Key = limited(max_queued=5)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: key.submit(version), range(20)))
    assert sorted(a.status_code for a in answers) == [202] * 5 + [429] * 15
    assert await jobs_of(database, version.model_id) == 5
    batch: Key = limited(max_queued=3)
    assert batch.batch(version, 4).status_code == 429
    assert await jobs_of(database, version.model_id) == 5
    assert batch.batch(version, 3).status_code == 202
