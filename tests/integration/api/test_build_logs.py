"""A build's log as its readers get it: live, resumed, afterwards, and however large."""

import asyncio
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from vyvo_dagster.building.log import BuildLog
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect_sync

from .test_builds import body
from .world import Api

LINES = 1500


def write(api: Api, build_id: str, spool: Path, lines: int, *, pause: float = 0.0) -> BuildLog:
    """What a build writes: text of all kinds, with fields now and then."""
    redis = connect_sync(api.settings.redis_url)
    log = BuildLog(build_id, spool, redis, keys.build_log(build_id), ObjectStore(api.s3), secrets=["hush-hush"])  # fmt: skip
    for n in range(lines):
        fields = {"event": "output", "stream": 1, "ansi": f"\x1b[32m{n}\x1b[0m"} if n % 3 else None
        log.line(f"{n % 7}/7", f"line {n} \u00fc\u2028 hush-hush {'x' * (n % 50)}", fields)
        if n % 20 == 0:
            threading.Event().wait(pause)
    return log


async def read(client: httpx.AsyncClient, build_id: str, after: str, most: int | None) -> AsyncIterator[tuple[str, str, str]]:  # fmt: skip
    """(id, event, data) of one connection, `most` of them."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
    async with client.stream("GET", f"/api/builds/{build_id}/logs", headers=headers) as answer:
        at: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                at[name] = value
            elif not line and at:
                yield at.get("id", ""), at["event"], at["data"]
                at = {}
                most = None if most is None else most - 1
                if most == 0:
                    return


async def whole(client: httpx.AsyncClient, build_id: str, every: int | None) -> tuple[list[str], int]:  # fmt: skip
    """The data of all lines, reconnecting after every so many; and how often it connected."""
    found: list[str] = []
    last, connections = "", 0
    while True:
        connections += 1
        async for id_, event, data in read(client, build_id, last, every):
            if event == "end":
                assert json.loads(data) == {"status": "succeeded"}
                return found, connections
            found.append(data)
            last = id_


async def test_readers_end_with_the_bytes_of_the_stored_log(
    api: Api, admin: httpx.Client, database: Database, tmp_path: Path
) -> None:
    build_id = admin.post("/api/builds", json=body()).json()["build_id"]

    def build() -> tuple[str, int]:
        log = write(api, build_id, tmp_path / "log.jsonl", LINES, pause=0.005)
        return log.close(BuildState.SUCCEEDED), log.lines

    async with httpx.AsyncClient(
        base_url=api.url, headers=dict(admin.headers), trust_env=False, timeout=30
    ) as client:
        steady = asyncio.create_task(whole(client, build_id, None))
        jumpy = asyncio.create_task(whole(client, build_id, 100))
        url, count = await asyncio.to_thread(build)
        async with database.transaction() as store:
            await store.builds.update(UUID(build_id), state=BuildState.BUILDING)
            await store.builds.move(
                UUID(build_id), BuildState.SUCCEEDED, log_url=url, log_lines=count
            )
        stored = ObjectStore(api.s3).get_bytes(url)
        live, once = await steady
        resumed, connections = await jumpy
        for redis_too in (True, False):
            if not redis_too:
                with connect_sync(api.settings.redis_url) as redis:
                    redis.delete(keys.build_log(build_id))
            late, _ = await whole(client, build_id, 100)
            assert "".join(f"{line}\n" for line in late).encode() == stored
    assert once == 1
    assert connections > 10
    assert count == stored.count(b"\n") > LINES  # a line separator makes two lines
    assert "".join(f"{line}\n" for line in live).encode() == stored
    assert resumed == live
    assert b"hush-hush" not in stored
    rows = [json.loads(line) for line in live]
    assert [row["n"] for row in rows] == list(range(1, count + 1))
    assert any("ansi" in row.get("fields", {}) for row in rows)
    text = admin.get(f"/api/builds/{build_id}/logs").text
    assert text == "".join(f"[{row['step']}] {row['text']}\n" for row in rows)
    part = admin.get(f"/api/builds/{build_id}", params={"log_offset": 700, "log_limit": 5}).json()
    assert [line["n"] for line in part["log"]["lines"]] == [701, 702, 703, 704, 705]
    assert part["log"]["next_offset"] == 705


@pytest.mark.parametrize("where", ["stream", "object"])
async def test_a_log_of_50_mb_does_not_grow_the_server(
    api: Api, admin: httpx.Client, database: Database, tmp_path: Path, where: str
) -> None:
    build_id = admin.post("/api/builds", json=body()).json()["build_id"]
    count, line = 3500, "y" * 15_000
    if where == "object":
        path = tmp_path / "stored"
        with path.open("w") as file:
            for n in range(1, count + 1):
                file.write(f'{{"n":{n},"t":1.5,"step":"x","text":"{line}"}}\n')
        objects = ObjectStore(api.s3)
        url = objects.put_file(objects.bucket("log"), f"builds/{uuid4()}.log", path)  # type: ignore[arg-type]
    else:
        with connect_sync(api.settings.redis_url) as redis:
            for start in range(1, count + 1, 100):
                pipe = redis.pipeline(transaction=False)
                for n in range(start, start + 100):
                    fields = {"n": n, "t": 1.5, "step": "x", "text": line}
                    pipe.xadd(keys.build_log(build_id), fields, id=f"{n}-0")  # type: ignore[arg-type]
                pipe.execute()
        url = None
    async with database.transaction() as store:
        await store.builds.update(UUID(build_id), state=BuildState.BUILDING)
        await store.builds.move(UUID(build_id), BuildState.SUCCEEDED, log_url=url, log_lines=count)
    size, seen = 0, 0
    tracemalloc.start()
    try:
        async with (
            httpx.AsyncClient(
                base_url=api.url, headers=dict(admin.headers), trust_env=False, timeout=60
            ) as client,
            client.stream("GET", f"/api/builds/{build_id}/logs") as answer,
        ):
            # The server is a thread of this process: what both hold is counted.
            async for chunk in answer.aiter_bytes():
                size += len(chunk)
                seen += chunk.count(b"\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        with connect_sync(api.settings.redis_url) as redis:
            redis.delete(keys.build_log(build_id))
    assert seen == count
    assert size > 50_000_000
    assert peak < 25_000_000
