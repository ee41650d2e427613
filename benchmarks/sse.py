"""500 followers of 500 jobs, half of them breaking off and resuming: what each saw, and its price.

    python benchmarks/sse.py [--clients 500] [--events 40] [--seconds 15] [--json]

A real api process (uvicorn, uvloop), PostgreSQL and Redis. Each job has one follower. `--events`
progress events of each job are published over `--seconds`, then its end, by the code that the
agents' reports go through. Every second follower closes its connection at random moments and comes
again with `Last-Event-ID`. Checked: each follower saw every event of its job once and in order, up
to `completed`. Quoted: the api's CPU and resident memory, and the delay from publishing to sight.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass
class Follower:
    """One client of one job's stream."""

    job_id: str
    breaks: list[int]
    seen: list[tuple[str, str]] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    connections: int = 0

    @property
    def last(self) -> str | None:
        ids = [id_ for id_, _ in self.seen if id_]
        return ids[-1] if ids else None


async def follow(url: str, key: str, follower: Follower) -> None:
    """Read until `completed`, breaking off before the events that `breaks` counts."""
    parts = urlsplit(url)
    while True:
        follower.connections += 1
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
        resume = f"Last-Event-ID: {follower.last}\r\n" if follower.last else ""
        writer.write(
            f"GET /api/jobs/{follower.job_id}/events HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Bearer {key}\r\n{resume}\r\n".encode()
        )
        try:
            if await _read(reader, follower):
                return
        finally:
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader, follower: Follower) -> bool:
    """Whether the stream came to its end; False where the follower broke off."""
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"refused: {status!r}")
    id_ = kind = ""
    while line := await reader.readline():
        text = line.decode().rstrip("\r\n")
        if text.startswith("id: "):
            id_ = text[4:]
        elif text.startswith("event: "):
            kind = text[7:]
        elif text.startswith("data: "):
            follower.seen.append((id_, kind))
            if kind == "progress" and "at" in (data := json.loads(text[6:])):
                follower.delays.append(time.time() - data["at"])
            if kind == "completed":
                return True
            id_ = kind = ""
            if follower.breaks and len(follower.seen) >= follower.breaks[0]:
                follower.breaks.pop(0)
                return False
    return False


def verdict(follower: Follower, published: list[tuple[str, str]]) -> str:
    """What is wrong with what a follower saw; empty where nothing is."""
    if follower.seen == published:
        return ""
    twice = len(follower.seen) - len(set(follower.seen))
    missing = len(set(published) - set(follower.seen))
    return f"{follower.job_id}: {missing} missing, {twice} twice, {len(follower.seen)} in all"


@dataclass
class Usage:
    """CPU seconds and resident bytes of a process."""

    cpu: float
    rss: int


def usage(pid: int) -> Usage:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    cpu = (int(fields[11]) + int(fields[12])) / ticks
    return Usage(cpu, int(fields[21]) * resource.getpagesize())


async def kept(redis: Any, job_id: str) -> list[tuple[str, str]]:
    """What was published of a job."""
    from vyvo_dagster.streams.events import replay

    return [(event.id, str(event.kind)) for event in await replay(redis, job_id)]


async def load(redis: Any, followers: list[Follower], events: int, seconds: float) -> None:
    """Publish every job's progress, spread over `seconds`."""
    async with asyncio.TaskGroup() as group:
        for share in range(8):
            group.create_task(_publish(redis, followers[share::8], events, seconds))


async def _publish(redis: Any, share: list[Follower], events: int, seconds: float) -> None:
    from vyvo_dagster.streams.events import publish_many

    started = time.monotonic()
    for n in range(events):
        for follower in share:
            data = {"fraction": n / events, "attempt": 1, "at": time.time()}
            await publish_many(redis, [(follower.job_id, "progress", data)])
        wait = started + (n + 1) * seconds / events - time.monotonic()
        await asyncio.sleep(max(wait, 0))


async def measure(
    url: str, key: str, redis: Any, jobs: list[str], pid: int, *,
    events: int, seconds: float, seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Follow `jobs` while their events are published; the findings."""
    rng = random.Random(seed)
    followers = [
        Follower(job, sorted(rng.sample(range(1, events), 3)) if n % 2 else [])
        for n, job in enumerate(jobs)
    ]
    before = usage(pid)
    async with asyncio.timeout(seconds + 60), asyncio.TaskGroup() as group:
        reading = [group.create_task(follow(url, key, f)) for f in followers]
        while not all(f.seen for f in followers):  # noqa: ASYNC110 - many events, one look
            await asyncio.sleep(0.05)
        opened = usage(pid)
        started = time.monotonic()
        await load(redis, followers, events, seconds)
        await cancel(url, key, jobs)
        await asyncio.wait(reading)
    after, took = usage(pid), time.monotonic() - started
    delays = sorted(d for f in followers[::2] for d in f.delays)
    wrong = [w for f in followers if (w := verdict(f, await kept(redis, f.job_id)))]
    total = sum(len(f.seen) for f in followers)
    return {
        "clients": len(followers), "events": total, "wrong": wrong,
        "connections": sum(f.connections for f in followers), "seconds": round(took, 1),
        "events_per_second": round(total / took), "cpu_share": round((after.cpu - opened.cpu) / took, 2),
        "rss_mb": {"idle": before.rss >> 20, "all open": opened.rss >> 20, "end": after.rss >> 20},
        "delay_ms": {p: round(1000 * delays[int(len(delays) * q)], 1)
                     for p, q in (("p50", 0.5), ("p99", 0.99))},
    }  # fmt: skip


@asynccontextmanager
async def stack(folder: Path) -> AsyncGenerator[dict[str, Any]]:
    """`vyvo up` without Dagster and agents; what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vyvo_dagster.cli", "up", "--data-dir", str(folder), "--no-dagster",
        "--agents", "0", "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(90):
            line = await process.stdout.readline()
        yield json.loads(line)
    finally:
        process.terminate()
        await process.wait()


async def submit(url: str, key: str, dsn: str, count: int) -> list[str]:
    """Jobs of a model that no node has: they wait, so that nothing but the load tells of them."""
    import httpx
    from uuid_utils.compat import uuid7

    from vyvo_dagster.domain.model import Modality, VersionState
    from vyvo_dagster.store.database import Database

    model_id = f"bench/{uuid7().hex[-12:]}"
    database = Database(dsn, pool_size=1)
    async with database.transaction() as store:
        await store.models.ensure(model_id, "admin")
        made = await store.models.create_draft(
            id=uuid7(), model_id=model_id, version="v1", template="digits-diffusion",
            modality=Modality.IMAGE,
            values={"runner_image": "noop://bench", "weights_uri": "s3://none/none"},
        )  # fmt: skip
        assert made is not None
        await store.models.move(made.id, VersionState.READY)
    await database.close()
    headers = {"Authorization": f"Bearer {key}"}
    job = {"model_id": model_id, "version": "v1", "input": {}}
    jobs: list[str] = []
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        while len(jobs) < count:
            batch = {"jobs": [job] * min(100, count - len(jobs))}
            answer = await client.post("/api/jobs/batch", json=batch, timeout=30)
            answer.raise_for_status()
            jobs += [each["job_id"] for each in answer.json()["jobs"]]
    return jobs


async def cancel(url: str, key: str, jobs: list[str]) -> None:
    """End jobs that wait: the api itself tells of it."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        for job in jobs:
            (await client.post(f"/api/jobs/{job}/cancel", timeout=30)).raise_for_status()


async def main(clients: int, events: int, seconds: float, *, as_json: bool) -> int:
    from vyvo_dagster.streams.client import connect

    with tempfile.TemporaryDirectory() as folder:
        async with stack(Path(folder)) as made, connect(made["redis_url"]) as redis:
            url, key = made["api"], made["admin_key"]
            jobs = await submit(url, key, made["postgres_dsn"], clients)
            found = await measure(
                url, key, redis, jobs, made["pids"]["api"], events=events, seconds=seconds
            )
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        wrong = found.pop("wrong")
        for name, value in found.items():
            sys.stdout.write(f"{name:18} {value}\n")
        sys.stdout.write("every client saw every event once and in order\n" if not wrong else "")
        sys.stdout.write("".join(f"WRONG {line}\n" for line in wrong[:20]))
        return bool(wrong)
    return bool(found["wrong"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--events", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.clients, args.events, args.seconds, as_json=args.json)))
