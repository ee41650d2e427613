"""The direct launch of builds, against a server that answers as Dagster's GraphQL does.

The request itself is checked against the installed dagster-graphql schema.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.builds import launch
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.build_queue import BuildLimits
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.records import Build

from .test_builds import body
from .world import Running, make_settings

LIMITS = BuildLimits(2)
LAUNCHED = {
    "addDynamicPartition": {"__typename": "AddDynamicPartitionSuccess"},
    "launchRun": {"__typename": "LaunchRunSuccess", "run": {"runId": "run-1"}},
}


class Dagster:
    """A webserver's /graphql; `answer` makes the data of each answer."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], Any] = lambda _: LAUNCHED
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append(request)
                data = outer.answer(request) if "mutation" in request["query"] else {"version": "1"}
                text = json.dumps({"data": data}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever)
        self.thread.start()

    def mutations(self) -> list[dict[str, Any]]:
        return [r for r in self.asked if "mutation" in r["query"]]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def dagster() -> Iterator[Dagster]:
    made = Dagster()
    yield made
    made.close()


@pytest.fixture
def own_dsn(make_database: Callable[[str], str]) -> str:
    """A database in which no other test's builds wait."""
    return make_database("migrated")


@pytest.fixture
async def database(own_dsn: str) -> AsyncIterator[Database]:
    made = Database(own_dsn, pool_size=2)
    yield made
    await made.close()


@pytest.fixture
def client(
    dagster: Dagster, own_dsn: str, redis_url: str, s3_settings: S3Settings, tmp_path: Path
) -> Iterator[httpx.Client]:
    settings = make_settings(own_dsn, redis_url, tmp_path, dagster_url=dagster.url)
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    headers = {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
    with httpx.Client(base_url=running.url, headers=headers, trust_env=False) as made:
        yield made
    running.close()


async def build_when(
    database: Database, build_id: str, met: Callable[[Build], bool], seconds: float = 30.0
) -> Build:
    deadline = time.monotonic() + seconds
    while True:
        async with database.transaction() as store:
            build = await store.builds.get(UUID(build_id))
        assert build is not None
        if met(build) or time.monotonic() > deadline:
            return build
        await asyncio.sleep(0.02)


async def test_a_build_is_launched_by_one_request(
    client: httpx.Client, dagster: Dagster, database: Database
) -> None:
    sent = body()
    build_id = client.post("/api/builds", json=sent).json()["build_id"]
    await build_when(database, build_id, lambda _: bool(dagster.mutations()))
    build = await build_when(database, build_id, lambda b: b.launch_claimed_at is not None)
    assert build.launch_claimed_at is not None
    (request,) = dagster.mutations()
    assert "addDynamicPartition" in request["query"]
    partition = f"{sent['model_id']}@v1"
    assert request["variables"]["partition"] == partition
    tags = request["variables"]["params"]["executionMetadata"]["tags"]
    assert {t["key"]: t["value"] for t in tags} == {
        "dagster/partition": partition, "vyvo/build_id": build_id,
    }  # fmt: skip
    async with database.transaction() as store:
        assert await store.build_queue.claim_next(LIMITS, 1) == []


@pytest.mark.parametrize(
    "answer",
    [
        {**LAUNCHED, "launchRun": {"__typename": "PythonError", "message": "no worker"}},
        {**LAUNCHED, "addDynamicPartition": {"__typename": "UnauthorizedError", "message": "no"}},
        {"unheard": "of"},
        {**LAUNCHED, "launchRun": {"__typename": "RunConfigValidationInvalid", "errors": [{"message": "x"}]}},
    ],
)  # fmt: skip
async def test_a_launch_that_fails_is_left_to_the_sensor(
    client: httpx.Client, dagster: Dagster, database: Database, answer: Any
) -> None:
    dagster.answer = lambda _: answer
    build_id = client.post("/api/builds", json=body()).json()["build_id"]
    await build_when(database, build_id, lambda _: bool(dagster.mutations()))
    build = await build_when(database, build_id, lambda b: b.launch_claimed_at is None)
    assert build.launch_claimed_at is None
    async with database.transaction() as store:
        assert [b.id for b in await store.build_queue.claim_next(LIMITS, 1)] == [UUID(build_id)]


async def test_a_dagster_that_is_away_is_left_to_the_sensor(
    own_dsn: str, redis_url: str, s3_settings: S3Settings, tmp_path: Path, database: Database
) -> None:
    settings = make_settings(own_dsn, redis_url, tmp_path, dagster_url="http://127.0.0.1:1")
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    answer = httpx.post(
        f"{running.url}/api/builds", json=body(), trust_env=False,
        headers={"X-API-Key": settings.admin_key.get_secret_value()},
    )  # fmt: skip
    running.close()
    assert answer.status_code == 202
    # Stopping waits for nothing of it, and what was claimed is given back all the same.
    build = await build_when(
        database, answer.json()["build_id"], lambda b: b.launch_claimed_at is None
    )
    assert build.launch_claimed_at is None


async def test_builds_are_launched_in_order_and_no_more_than_may_be_at_work(
    client: httpx.Client, dagster: Dagster, database: Database
) -> None:
    ids = [client.post("/api/builds", json=body()).json()["build_id"] for _ in range(6)]

    def launched() -> list[str]:
        return [
            tag["value"]
            for request in dagster.mutations()
            for tag in request["variables"]["params"]["executionMetadata"]["tags"]
            if tag["key"] == "vyvo/build_id"
        ]

    for n, build_id in enumerate(ids):
        most = min(n + LIMITS.per_host, len(ids))
        await build_when(database, build_id, lambda _, most=most: len(launched()) >= most)
        assert launched() == ids[:most]
        async with database.transaction() as store:
            await store.build_queue.begin(UUID(build_id), f"run-{n}", "host", LIMITS)
            # The notice of its end launches the next one.
            await store.builds.move(UUID(build_id), BuildState.FAILED)
    assert len(launched()) == len(ids)


async def test_a_repeated_request_launches_once(
    client: httpx.Client, dagster: Dagster, database: Database
) -> None:
    sent, header = body(), {"Idempotency-Key": "launch-once-" + body()["model_id"]}
    first = client.post("/api/builds", json=sent, headers=header)
    second = client.post("/api/builds", json=sent, headers=header)
    assert first.json() == second.json()
    await build_when(database, first.json()["build_id"], lambda _: bool(dagster.mutations()))
    await asyncio.sleep(0.1)
    assert len(dagster.mutations()) == 1


async def test_canceling_a_build_that_runs_terminates_its_run(
    client: httpx.Client, dagster: Dagster, database: Database
) -> None:
    sent = body()
    build_id = client.post("/api/builds", json=sent).json()["build_id"]
    await build_when(database, build_id, lambda _: bool(dagster.mutations()))
    async with database.transaction() as store:
        await store.build_queue.begin(UUID(build_id), "run-1", "host", LIMITS)
    dagster.answer = lambda _: {"terminateRun": {"__typename": "TerminateRunSuccess"}}
    assert client.post(f"/api/builds/{build_id}/cancel").json()["status"] == "canceled"
    await build_when(database, build_id, lambda _: len(dagster.mutations()) == 2)
    assert dagster.mutations()[1]["variables"] == {"id": "run-1"}
    # The run gives the version back once it has wound up, not the api.
    version = client.get(f"/api/models/{sent['model_id']}/versions/v1").json()
    assert version["state"] == "building"


def test_the_requests_are_valid_for_the_installed_dagster() -> None:
    from dagster_graphql.schema import create_schema
    from graphql import parse, validate

    schema = create_schema().graphql_schema
    for query in (launch._LAUNCH, launch._TERMINATE, launch._WARM):
        assert validate(schema, parse(query)) == []
