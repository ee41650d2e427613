"""Event streams under load, with slow readers, and over an outage of Redis."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from uuid_utils.compat import uuid7

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.local.parts import start_part
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.process import stop
from vyvo_dagster.local.servers import valkey
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.streams.client import connect
from vyvo_dagster.streams.events import Event, publish, publish_many
from vyvo_dagster.streams.hub import EventHub

from .test_nodes import submit
from .world import Api, Running, Version, make_settings

ROOT = Path(__file__).parents[3]


def test_every_client_sees_every_event_once_and_in_order() -> None:
    """The benchmark at a tenth of its size: a whole stack, half of the clients break off and resume."""
    command = [sys.executable, "benchmarks/sse.py", "--clients", "50", "--events", "30",
               "--seconds", "3", "--json"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["connections"] == 50 + 25 * 3
    # queued, the progress, completed.
    assert found["events"] >= 50 * 32


async def test_a_reader_whose_connections_are_cut_loses_nothing(redis_url: str) -> None:
    job_id = uuid7()
    async with (
        connect(redis_url) as reading,
        connect(redis_url) as writing,
        asyncio.timeout(30),
        asyncio.TaskGroup() as group,
    ):
        hub = EventHub(reading)
        running = group.create_task(hub.run())

        async def write() -> None:
            for n in range(300):
                await publish(writing, job_id, "progress", {"n": n})
                if n % 60 == 30:
                    await writing.execute_command(
                        "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"
                    )
                await asyncio.sleep(0.002)

        group.create_task(write())
        seen: list[int] = []
        async with aclosing(hub.follow(job_id, "0-0", 5.0)) as events:
            async for found in events:
                seen += [e.data["n"] for e in found]
                if len(seen) >= 300:
                    break
        await cancel_all([running])
    assert seen == list(range(300))


async def test_events_are_read_once_someone_follows_and_all_from_then_on(redis_url: str) -> None:
    job_id = uuid7()
    async with (
        connect(redis_url) as redis,
        connect(redis_url) as writing,
        asyncio.timeout(30),
        asyncio.TaskGroup() as group,
    ):

        async def reads() -> int:
            stats = await writing.info("commandstats")
            return int(stats.get("cmdstat_xread", {"calls": 0})["calls"])

        hub = EventHub(redis)
        running = group.create_task(hub.run())
        before = await reads()
        for n in range(20):
            await publish(writing, job_id, "progress", {"n": n})
        assert await reads() == before
        for n in range(20, 23):
            async with hub.subscribe(None) as subscription:
                await publish(writing, job_id, "progress", {"n": n})
                assert [e.data["n"] for e in await subscription.next(5.0)] == [n]
        await cancel_all([running])


async def test_a_follower_too_slow_for_its_queue_finds_all_that_is_kept(redis_url: str) -> None:
    job_id = uuid7()
    async with (
        connect(redis_url) as redis,
        asyncio.timeout(30),
        asyncio.TaskGroup() as group,
    ):
        hub = EventHub(redis)
        running = group.create_task(hub.run())
        seen: list[int] = []
        async with aclosing(hub.follow(job_id, "0-0", 1.0)) as events:
            assert await anext(events) == []
            for start in range(0, 6000, 500):
                batch = [(str(job_id), "progress", {"n": n}) for n in range(start, start + 500)]
                await publish_many(redis, batch)
            await asyncio.sleep(0.5)
            async for found in events:
                if not found:
                    break
                seen += [e.data["n"] for e in found]
        await cancel_all([running])
    assert seen == sorted(set(seen))
    assert seen[-1024:] == list(range(6000 - 1024, 6000))


async def test_an_end_that_redis_never_heard_of_is_told_when_it_is_back(
    postgres_dsn: str, s3_settings: S3Settings, version: Version, tmp_path: Path
) -> None:
    part = valkey(tmp_path, port=Ports(tmp_path / "ports.json").take("redis"), password="own")
    child = await start_part(part, logs=tmp_path / "logs")
    settings = make_settings(postgres_dsn, part.url, tmp_path)
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    headers = {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
    try:
        async with httpx.AsyncClient(
            base_url=running.url, headers=headers, trust_env=False, timeout=30
        ) as client:
            body = {"model_id": version.model_id, "input": {"digit": 1}}
            job_id = (await client.post("/api/jobs", json=body)).json()["job_id"]
            async with (
                client.stream("GET", f"/api/jobs/{job_id}/events") as stream,
                aclosing(stream.aiter_lines()) as lines,
            ):
                while "queued" not in await anext(lines):
                    pass
                await stop(child)
                answer = await client.post(f"/api/jobs/{job_id}/cancel")
                assert answer.json()["status"] == "canceled"
                child = await start_part(part, logs=tmp_path / "logs")
                back = time.monotonic()
                rest = [line async for line in lines]
        assert [r for r in rest if r.startswith("event: ")] == ["event: completed"]
        assert '"status":"canceled"' in "".join(rest)
        assert time.monotonic() - back < 8
    finally:
        await asyncio.to_thread(running.close)
        await stop(child)


def open_slowly(api: Api, path: str) -> socket.socket:
    """A stream that nobody reads for now, with little room on the way."""
    parts = urlsplit(api.url)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(10)
    made.connect((parts.hostname, parts.port))
    made.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Authorization: Bearer {api.admin_key}\r\n\r\n".encode()
    )
    assert made.recv(12) == b"HTTP/1.1 200"
    return made


async def test_a_slow_reader_of_all_events_hurts_nobody_and_learns_what_it_missed(
    api: Api, admin: httpx.Client, version: Version, redis_url: str
) -> None:
    job_id = submit(admin, version)
    slow = open_slowly(api, "/api/events")
    other = uuid7()
    async with (
        connect(redis_url) as redis,
        httpx.AsyncClient(base_url=api.url, headers=dict(admin.headers), trust_env=False) as client,
        client.stream("GET", f"/api/events?kind=completed&job_id={job_id}", timeout=20) as quick,
        aclosing(quick.aiter_lines()) as lines,
    ):
        await anext(lines)
        big = {"lines": ["x" * 4000]}
        for _ in range(40):
            await publish_many(redis, [(str(other), "log", big)] * 200)
        started = time.monotonic()
        await asyncio.to_thread(admin.post, f"/api/jobs/{job_id}/cancel")
        async with asyncio.timeout(30):
            while "event: completed" not in await anext(lines):
                pass
        assert time.monotonic() - started < 5
    received = await asyncio.to_thread(_until, slow, b"event: missed")
    slow.close()
    assert received.count(b"event: log") < 8000
    told: Any = json.loads(received.rpartition(b"event: missed\ndata: ")[2].split(b"\n")[0])
    assert told["count"] > 0


def _until(source: socket.socket, mark: bytes) -> bytes:
    received = bytearray()
    while mark not in received[-200_000:] or not received.endswith(b"\n\r\n"):
        data = source.recv(1 << 16)
        assert data, "the stream ended"
        received += data
    return bytes(received)


def test_an_events_data_is_what_was_published() -> None:
    event = Event("a-job", "1-0", "log", '{"lines":["a\\nb"]}')
    assert event.data == {"lines": ["a\nb"]}
