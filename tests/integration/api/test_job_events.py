"""A job's event stream: replayed, live, resumed, and made from the row where it was lost."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import httpx

from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect

from .test_builds import parse
from .test_nodes import submit
from .world import (
    Agent,
    Api,
    Running,
    Version,
    dispatch,
    load,
    make_settings,
    ready_version,
    unique,
)


def follow(admin: httpx.Client, job_id: object, after: str = "") -> list[tuple[str, str, Any]]:
    headers = {"Last-Event-ID": after} if after else {}
    answer = admin.get(f"/api/jobs/{job_id}/events", headers=headers)
    assert answer.status_code == 200
    return parse(answer.text.split("\n"))


async def finished(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> tuple[str, dict[str, Any]]:
    assignment_id = await load(admin, agent, version)
    job = await dispatch(database, submit(admin, version), agent, assignment_id)
    path = f"/api/jobs/{job.id}/progress"
    agent.post(path, {"attempt": 1})
    for fraction in (0.25, 0.75):
        agent.post(path, {"attempt": 1, "fraction": fraction, "logs": [f"at {fraction}"]})
    bucket = f"{agent.api.s3.bucket_prefix}image"
    artifact = {"type": "image", "url": f"s3://{bucket}/{job.id}.png", "size_bytes": 4,
                "mime_type": "image/png"}  # fmt: skip
    agent.complete(job.id, 1, "succeeded", artifacts=[artifact], output={"seed": 1})
    return str(job.id), artifact


async def test_a_finished_job_is_replayed_and_resumed(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    job_id, artifact = await finished(admin, agent, version, database)
    events = follow(admin, job_id)
    assert [e[1] for e in events] == [
        "queued", "started", "progress", "log", "progress", "log", "artifact", "completed",
    ]  # fmt: skip
    assert events[2][2]["fraction"] == 0.25
    assert events[3][2]["lines"] == ["at 0.25"]
    assert events[-2][2]["url"] == artifact["url"]
    assert events[-2][2]["presigned_url"].startswith(agent.api.s3.endpoint)
    last = events[-1][2]
    assert (last["status"], last["output"]) == ("succeeded", {"seed": 1})
    assert last["artifacts"][0]["presigned_url"].startswith(agent.api.s3.endpoint)
    assert follow(admin, job_id, events[4][0]) == events[5:] or [
        e[:2] for e in follow(admin, job_id, events[4][0])
    ] == [e[:2] for e in events[5:]]
    # After the last there is nothing kept: the end is told again from the row.
    assert [e[1] for e in follow(admin, job_id, events[-1][0])] == ["completed"]
    assert [e[1] for e in follow(admin, job_id, "nonsense")] == [e[1] for e in events]


async def test_after_a_flush_the_end_is_told_from_the_row(
    admin: httpx.Client, agent: Agent, version: Version, database: Database, api: Api
) -> None:
    job_id, artifact = await finished(admin, agent, version, database)
    replayed = follow(admin, job_id)[-1][2]
    async with connect(api.settings.redis_url) as redis:
        await redis.delete(keys.job_events(job_id))
    ((_, kind, data),) = follow(admin, job_id)
    assert kind == "completed"
    assert (data["status"], data["artifacts"][0]["url"]) == ("succeeded", artifact["url"])
    assert data.keys() == replayed.keys()
    assert data["artifacts"][0].keys() == replayed["artifacts"][0].keys()


async def test_events_come_live(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job_id = submit(admin, version)
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def listen() -> list[str]:
        lines: list[str] = []
        async with (
            httpx.AsyncClient(
                base_url=api.url, headers=dict(admin.headers), trust_env=False
            ) as client,
            client.stream("GET", f"/api/jobs/{job_id}/events", timeout=10) as stream,
        ):
            async for line in stream.aiter_lines():
                lines.append(line)
                if line.startswith("event: "):
                    seen.put_nowait(line.removeprefix("event: "))
        return lines

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(listen())
        assert await seen.get() == "queued"
        job = await dispatch(database, job_id, agent, assignment_id)
        started = time.monotonic()
        await asyncio.to_thread(agent.post, f"/api/jobs/{job_id}/progress", {"attempt": 1})
        assert await seen.get() == "started"
        assert time.monotonic() - started < 1
        await asyncio.to_thread(agent.complete, job.id, 1, "failed")
    assert [e[1] for e in parse(listening.result())] == ["queued", "started", "completed"]


async def test_the_stream_of_all_events_shows_a_tenant_its_own(
    api: Api, admin: httpx.Client, database: Database
) -> None:
    tenant = unique("t")
    made = admin.post(
        "/api/keys", json={"name": "k", "tenant": tenant, "scopes": ["events:read", "jobs:write"]}
    )
    key = made.json()["key"]
    version = await ready_version(database)
    async with httpx.AsyncClient(base_url=api.url, trust_env=False, timeout=10) as client:
        headers = {"Authorization": f"Bearer {key}"}
        params = {"kind": ["queued", "completed"]}
        async with client.stream("GET", "/api/events", headers=headers, params=params) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            await asyncio.sleep(0.1)
            submit(admin, version)
            with api.client(key) as mine:
                job_id = submit(mine, version)
                mine.post(f"/api/jobs/{job_id}/cancel")
            got: list[str] = []
            async with asyncio.timeout(30):
                while [line for line in got if line].count("event: completed") == 0:
                    got.append(await anext(lines))
                got += [await anext(lines), await anext(lines)]
            await lines.aclose()
    events = parse(got)
    assert [(e[1], e[2]["job_id"]) for e in events] == [("queued", job_id), ("completed", job_id)]


async def test_streams_end_when_the_api_stops(
    postgres_dsn: str, redis_url: str, api: Api, version: Version, tmp_path: Any
) -> None:
    settings = make_settings(postgres_dsn, redis_url, tmp_path)
    running = Running(settings, api.s3)
    assert settings.admin_key is not None
    headers = {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
    async with httpx.AsyncClient(base_url=running.url, headers=headers, trust_env=False) as client:
        body = {"model_id": version.model_id, "input": {"digit": 1}}
        job_id = (await client.post("/api/jobs", json=body)).json()["job_id"]
        async with (
            client.stream("GET", f"/api/jobs/{job_id}/events", timeout=10) as stream,
            aclosing(stream.aiter_lines()) as lines,
        ):
            await anext(lines)
            took = await asyncio.to_thread(running.close)
            rest = [line async for line in lines]
    assert took < 2.5
    assert not any(line.startswith("event: completed") for line in rest)
