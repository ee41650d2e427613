"""Requests a second of `POST /api/jobs` beside bare endpoints that do the least a gateway can.

    python benchmarks/gateway.py [--seconds 4] [--rounds 3]

Same run, same PostgreSQL (fsync on), same Redis (append-only file, everysec), one uvicorn worker
each (uvloop, httptools), the same request. The endpoints:

- empty: FastAPI, answers 202;
- bare, unbatched: FastAPI, one insert of one row and one XADD for each request;
- bare, batched: FastAPI, group commit by one insert of unnest and one pipeline of XADD;
- vyvo: `POST /api/jobs` as it is served, with API key, schema of the version, place in the queue,
  outbox, first event and metrics;
- vyvo, keyed: the same with a new Idempotency-Key on each request.

The client is a process of its own that keeps C connections busy with a request made beforehand.
Whether it is the bottleneck shows in the row "no server": the same client against a protocol that
answers from memory without looking at the request.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import uvloop

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.7
CONCURRENCY = (16, 64)
MODEL = "bench/model"
BODY = json.dumps({"model_id": MODEL, "input": {"digit": 7}}).encode()
SCHEMA = {
    "type": "object",
    "required": ["digit"],
    "additionalProperties": False,
    "properties": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
}
BARE_TABLE = "create table bare (id uuid primary key, input jsonb not null)"


class Client(asyncio.Protocol):
    """One connection that sends the next request as soon as one is answered."""

    def __init__(self, requests: Iterator[bytes], until: float, counts: list[int]) -> None:
        self._requests, self._until, self._counts = requests, until, counts
        self._buffer = b""
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self._transport = transport
        transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        """Count an answer that is whole, and send again."""
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length:", 0, head)
        length = int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) < head + 4 + length:
            return
        self._counts[self._buffer[9:12] != b"202"] += 1
        self._buffer = b""
        if time.monotonic() < self._until:
            self._transport.write(next(self._requests))
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        if not self.closed.done():
            self.closed.set_result(None)


def load(
    port: int, path: str, key: str, keyed: bool, connections: int, seconds: float, pipe: Any
) -> None:
    """The client's process: sends (answers a second, answers that were not 202)."""

    async def run() -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n"
        plain = f"{head}\r\n".encode() + BODY
        series = os.urandom(8).hex()
        requests = (
            f"{head}Idempotency-Key: {series}-{n}\r\n\r\n".encode() + BODY if keyed else plain
            for n in itertools.count()
        )
        counts = [0, 0]
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        made = [
            await loop.create_connection(
                lambda: Client(requests, started + seconds, counts), "127.0.0.1", port
            )
            for _ in range(connections)
        ]
        async with asyncio.timeout(seconds + 30):
            await asyncio.gather(*(client.closed for _, client in made))
        pipe.send((counts[0] / (time.monotonic() - started), counts[1]))

    uvloop.run(run())


def rate(port: int, path: str, key: str, keyed: bool, connections: int, seconds: float) -> float:
    """Answers a second of one endpoint."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=load, args=(port, path, key, keyed, connections, seconds, theirs)
    )
    child.start()
    if not ours.poll(seconds + 60):
        raise SystemExit(f"the client of {path} did not end")
    found, failed = ours.recv()
    child.join(10)
    if failed:
        raise SystemExit(f"{failed} answers of {path} were not 202")
    return found


def bare_app(dsn: str, redis_url: str) -> Any:
    """The endpoints to compare with."""
    import redis.asyncio
    from fastapi import FastAPI
    from psycopg_pool import AsyncConnectionPool
    from pydantic import BaseModel
    from uuid_utils.compat import uuid7

    class Job(BaseModel):
        model_id: str
        input: dict[str, Any]

    pool = AsyncConnectionPool(dsn, min_size=16, max_size=16, open=False)
    client = redis.asyncio.from_url(redis_url)
    waiting: list[tuple[Any, Job, asyncio.Future[None]]] = []
    asked = asyncio.Event()

    async def flush() -> None:
        while True:
            await asked.wait()
            asked.clear()
            group = waiting[:200]
            del waiting[:200]
            async with pool.connection() as connection:
                await connection.execute(
                    "insert into bare select * from unnest(%s::uuid[], %s::jsonb[])",
                    ([g[0] for g in group], [json.dumps(g[1].input) for g in group]),
                )
            async with client.pipeline(transaction=False) as pipe:
                for id_, _, _ in group:
                    pipe.xadd("bare", {"id": str(id_)})
                await pipe.execute()
            for _, _, done in group:
                done.set_result(None)
            if waiting:
                asked.set()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        await pool.open(wait=True, timeout=20)
        task = asyncio.create_task(flush())
        yield
        task.cancel()
        await pool.close()
        await client.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/empty", status_code=202)
    async def empty() -> dict[str, str]:
        return {"status": "queued"}

    @app.post("/unbatched", status_code=202)
    async def unbatched(job: Job) -> dict[str, str]:
        id_ = uuid7()
        async with pool.connection() as connection:
            await connection.execute(
                "insert into bare values (%s, %s)", (id_, json.dumps(job.input))
            )
        await client.xadd("bare", {"id": str(id_)})
        return {"job_id": str(id_), "status": "queued"}

    @app.post("/batched", status_code=202)
    async def batched(job: Job) -> dict[str, str]:
        id_ = uuid7()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append((id_, job, done))
        asked.set()
        await done
        return {"job_id": str(id_), "status": "queued"}

    return app


def serve_bare(port: int, dsn: str, redis_url: str) -> None:
    """Process: the bare endpoints, served as `vyvo api` serves."""
    import uvicorn

    uvicorn.run(
        bare_app(dsn, redis_url), port=port, loop="uvloop", http="httptools", ws="none",
        access_log=False, log_config=None, server_header=False,
    )  # fmt: skip


def serve_vyvo(settings: dict[str, Any], s3: dict[str, Any]) -> None:
    """Process: the api as it is."""
    os.environ |= {f"VYVO_{k.upper()}": str(v) for k, v in settings.items()}
    os.environ |= {f"VYVO_S3_{k.upper()}": str(v) for k, v in s3.items()}
    from api.server import run

    run()


def serve_nothing(port: int) -> None:
    """Process: the least that an answer costs; shows what the client alone can do."""
    answer = b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n" + b"x" * 100

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(answer)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(run())


def free_port() -> int:
    """A port of loopback that nothing has."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextmanager
def process(port: int, target: Callable[..., None], *args: Any) -> Generator[int]:
    """A server in a process of its own, until the block is left; yields its port."""
    child = multiprocessing.get_context("spawn").Process(target=target, args=args)
    child.start()
    try:
        deadline = time.monotonic() + 40
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if not child.is_alive() or time.monotonic() > deadline:
                raise SystemExit(f"{target.__name__} did not start")
            time.sleep(0.05)
        yield port
    finally:
        child.terminate()
        child.join(15)
        if child.is_alive():
            child.kill()


@contextmanager
def servers(folder: Path) -> Generator[tuple[str, str]]:
    """PostgreSQL with the tables, and Redis; yields their URLs."""
    from vyvo_dagster.local.parts import start_part
    from vyvo_dagster.local.ports import Ports
    from vyvo_dagster.local.postgres import postgres
    from vyvo_dagster.local.process import stop
    from vyvo_dagster.local.servers import valkey
    from vyvo_dagster.store.migrate import upgrade

    ports = Ports(folder / "ports.json")
    parts = [
        postgres(folder, port=ports.take("postgres"), password="bench"),
        valkey(folder, port=ports.take("redis"), password="bench"),
    ]
    loop = asyncio.new_event_loop()
    # Children are watched by the loop that started them, so it runs in a thread of its own.
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait_for(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(90)

    children: list[Any] = []
    try:
        children.extend(wait_for(start_part(part, logs=folder / "logs")) for part in parts)
        upgrade(parts[0].url)
        with psycopg.connect(parts[0].url, autocommit=True) as connection:
            connection.execute(BARE_TABLE)
        yield parts[0].url, parts[1].url
    finally:
        for child in children:
            wait_for(stop(child))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def add_model(dsn: str) -> None:
    """A version with a schema that takes jobs."""
    from uuid_utils.compat import uuid7

    from vyvo_dagster.domain.model import Modality, VersionState
    from vyvo_dagster.store.database import Database

    database = Database(dsn, pool_size=0)
    async with database.transaction() as store:
        await store.models.ensure(MODEL, "admin")
        made = await store.models.create_draft(
            id=uuid7(), model_id=MODEL, version="v1", template="digits-diffusion",
            modality=Modality.IMAGE, values={"input_schema": SCHEMA},
        )  # fmt: skip
        assert made is not None
        await store.models.move(made.id, VersionState.READY)
    await database.close()


def main() -> None:
    """Measure, print the table, exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="medians are printed")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from vyvo_dagster.security.keys import TokenKind, mint

    folder = Path(tempfile.mkdtemp(prefix="vyvo-bench-"))
    key = mint(TokenKind.KEY).text
    met = True
    try:
        with servers(folder) as (dsn, redis_url), ExitStack() as stack:
            asyncio.run(add_model(dsn))
            nothing, bare, port = free_port(), free_port(), free_port()
            settings = {"postgres_dsn": dsn, "redis_url": redis_url, "api_port": port}
            settings |= {"admin_key": key, "data_dir": folder}
            stack.enter_context(process(nothing, serve_nothing, nothing))
            stack.enter_context(process(bare, serve_bare, bare, dsn, redis_url))
            stack.enter_context(process(port, serve_vyvo, settings, {}))
            rows = {
                "no server": (nothing, "/", False),
                "empty": (bare, "/empty", False),
                "bare, unbatched": (bare, "/unbatched", False),
                "bare, batched": (bare, "/batched", False),
                "vyvo POST /api/jobs": (port, "/api/jobs", False),
                "vyvo, keyed": (port, "/api/jobs", True),
            }
            print(f"answers a second, medians of {options.rounds}, {os.cpu_count()} cores")
            for connections in CONCURRENCY:
                for at, path, keyed in rows.values():  # warm
                    rate(at, path, key, keyed, connections, 0.5)
                found: dict[str, list[float]] = {name: [] for name in rows}
                for _ in range(options.rounds):
                    for name, (at, path, keyed) in rows.items():
                        found[name].append(rate(at, path, key, keyed, connections, options.seconds))
                for name, rates in found.items():
                    low, high = min(rates), max(rates)
                    print(
                        f"c={connections:<3} {name:<22} {median(rates):>8.0f}  {low:.0f} to {high:.0f}"
                    )
                share = median(found["vyvo POST /api/jobs"]) / median(found["bare, batched"])
                met = met and share >= GOAL
                print(f"c={connections:<3} vyvo is {share:.2f} of bare batched; goal {GOAL}")
                keyed_share = median(found["vyvo, keyed"]) / median(found["bare, batched"])
                print(f"c={connections:<3} with keys it is {keyed_share:.2f}")
    except BaseException:
        print(f"the logs are in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(not met)


if __name__ == "__main__":
    main()
