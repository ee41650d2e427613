"""The gateway while PostgreSQL or Redis is killed with -9, and after it is back."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.local.parts import Part, start_part
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.postgres import postgres
from vyvo_dagster.local.process import Child, stop
from vyvo_dagster.local.servers import valkey
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.migrate import upgrade
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect

from .world import Running, Version, make_settings, ready_version, unique

SECONDS = 40.0


@dataclass
class Servers:
    """A PostgreSQL and a Redis of this test's own, an api over them, and a client of it."""

    folder: Path
    parts: dict[str, Part]
    children: dict[str, Child]
    running: Running
    client: httpx.AsyncClient
    version: Version

    async def start(self, name: str) -> None:
        async with asyncio.timeout(SECONDS):
            while True:
                with contextlib.suppress(Unavailable):  # a backend of the killed one still lives
                    self.children[name] = await start_part(
                        self.parts[name], logs=self.folder / "logs"
                    )
                    return
                await asyncio.sleep(0.2)

    async def kill(self, name: str) -> None:
        os.killpg(self.children[name].pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while self.children[name].running():
                await asyncio.sleep(0.01)

    async def submit(self, key: str | None = None, token: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        body = {"model_id": self.version.model_id, "input": {"digit": 1}}
        return await self.client.post("/api/jobs", json=body, headers=headers)

    async def submit_until_taken(self, key: str) -> tuple[str, int]:
        """The job, and how many answers were 503."""
        refused = 0
        async with asyncio.timeout(SECONDS):
            while True:
                answer = await self.submit(key)
                if answer.status_code == 202:
                    return answer.json()["job_id"], refused
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                assert int(answer.headers["retry-after"]) > 0
                refused += 1
                await asyncio.sleep(0.1)

    async def rows(self) -> set[str]:
        database = Database(self.parts["postgres"].url, pool_size=1)
        try:
            async with database.transaction() as store:
                found = await store.jobs.browse(None, None, 100, None, self.version.model_id)
        finally:
            await database.close()
        return {str(job.id) for job in found}

    async def entries(self) -> list[str]:
        """The jobs in their stream."""
        stream = keys.jobs(self.version.model_id, self.version.name, Priority.STANDARD, "admin")
        async with connect(self.parts["redis"].url) as redis:
            found: Any = await redis.xrange(stream)
        return [fields["id"] for _, fields in found]


@pytest.fixture
async def servers(tmp_path: Path, s3_settings: S3Settings) -> AsyncIterator[Servers]:
    ports = Ports(tmp_path / "ports.json")
    parts = [
        postgres(tmp_path, port=ports.take("postgres"), password="outage"),
        valkey(tmp_path, port=ports.take("redis"), password="outage"),
    ]
    children: dict[str, Child] = {}
    running: Running | None = None
    try:
        for part in parts:
            children[part.name] = await start_part(part, logs=tmp_path / "logs")
        await asyncio.to_thread(upgrade, parts[0].url)
        database = Database(parts[0].url, pool_size=1)
        version = await ready_version(database)
        await database.close()
        settings = make_settings(parts[0].url, parts[1].url, tmp_path / "data")
        running = await asyncio.to_thread(Running, settings, s3_settings)
        assert settings.admin_key is not None
        headers = {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
        async with httpx.AsyncClient(
            base_url=running.url, headers=headers, timeout=35, trust_env=False
        ) as client:
            by_name = {part.name: part for part in parts}
            yield Servers(tmp_path, by_name, children, running, client, version)
    finally:
        if running is not None:
            await asyncio.to_thread(running.close)
        await asyncio.gather(*(stop(child, grace=2.0) for child in children.values()))


async def test_what_is_taken_without_redis_is_delivered_when_it_is_back(servers: Servers) -> None:
    limits = {"rate_per_second": 0.01, "burst": 1}
    body = {"name": "slow", "tenant": "admin", "scopes": ["jobs:write"], "limits": limits}
    token = (await servers.client.post("/api/keys", json=body)).json()["key"]
    limited = [(await servers.submit(token=token)) for _ in range(2)]
    assert [a.status_code for a in limited] == [202, 429]
    await servers.kill("redis")
    keys_sent = [None, unique("k"), None, unique("k")]
    answers = [await servers.submit(key) for key in keys_sent]
    # Limits are not held while nobody counts; the caller is not the one to suffer.
    answers += [await servers.submit(token=token) for _ in range(3)]
    assert [a.status_code for a in answers] == [202] * 7
    repeated = await servers.submit(keys_sent[1])
    assert repeated.json() == answers[1].json()
    jobs = {a.json()["job_id"] for a in (limited[0], *answers)}
    assert await servers.rows() == jobs
    await servers.start("redis")
    async with asyncio.timeout(SECONDS):
        while not jobs <= set(await servers.entries()):
            await asyncio.sleep(0.1)
    assert (await servers.submit()).status_code == 202
    async with asyncio.timeout(SECONDS):
        while (await servers.submit(token=token)).status_code != 429:
            await asyncio.sleep(0.2)


async def test_a_keyed_submission_may_be_repeated_across_an_outage_of_postgres(
    servers: Servers,
) -> None:
    before = (await servers.submit(first := unique("k"))).json()["job_id"]
    under_way = [asyncio.create_task(servers.submit_until_taken(unique("k"))) for _ in range(10)]
    await asyncio.sleep(0)
    await servers.kill("postgres")
    plain = await servers.submit()
    assert (plain.status_code, plain.json()["code"]) == (503, "unavailable")
    assert int(plain.headers["retry-after"]) > 0
    under_way += [asyncio.create_task(servers.submit_until_taken(unique("k"))) for _ in range(5)]
    await asyncio.sleep(0.5)
    await servers.start("postgres")
    taken = await asyncio.gather(*under_way)
    assert all(refused for _, refused in taken[10:])
    assert (await servers.submit(first)).json()["job_id"] == before
    assert len({job for job, _ in taken}) == 15
    assert await servers.rows() == {before, *(job for job, _ in taken)}
