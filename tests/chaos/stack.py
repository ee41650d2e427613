"""A whole stack of real processes, each of which can be killed and started again."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.chaos.proxy import LossyProxy
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.local.parts import Part, start_part
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.postgres import postgres
from vyvo_dagster.local.process import Child, stop
from vyvo_dagster.local.servers import valkey
from vyvo_dagster.security.keys import TokenKind, mint
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.migrate import upgrade

__all__ = ["MODEL", "SLOTS", "Stack", "stack"]

MODEL = "chaos/noop"
SLOTS = 32
NODES = ("node-a", "node-b")
_JOIN_TOKEN = "a-join-token"
# Short, so that what waits for a clock ends within a test's patience.
_CLOCKS = {
    "VYVO_HEARTBEAT_SECONDS": "0.5",
    "VYVO_SUSPECT_SECONDS": "2",
    "VYVO_LOST_SECONDS": "4",
    "VYVO_LEASE_SECONDS": "4",
    # A job that is on a node at each of many kills must not run out of attempts.
    "VYVO_MAX_ATTEMPTS": "30",
}


@dataclass
class Stack:
    """The processes by name, and where they are."""

    folder: Path
    url: str
    key: str
    postgres_dsn: str
    redis_url: str
    parts: dict[str, Part]
    children: dict[str, Child] = field(default_factory=dict)
    proxies: dict[str, LossyProxy] = field(default_factory=dict)
    """Before the parts that are reached through one."""

    async def start(self, name: str) -> None:
        """Start a part and wait until it answers; a server may need a moment after a kill."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.children[name] = await start_part(
                    self.parts[name], logs=self.folder / "logs", env=_environment()
                )
            except Unavailable:
                # PostgreSQL refuses while a backend of the killed one still lives.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    def kill(self, name: str) -> None:
        """Kill -9, with all that it started in its group."""
        child = self.children[name]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        while child.running():  # reaped, so that nothing of it is warned of later
            time.sleep(0.001)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one process."""
        os.kill(self.children[name].pid, number)

    def empty_redis(self) -> None:
        """Delete the data of a Redis that is not running."""
        for path in (self.folder / "redis").iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != ".conf":
                path.unlink()

    def client(self) -> httpx.AsyncClient:
        """A client of the api with the admin's key."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=httpx.Timeout(10, connect=2),
            trust_env=False,
        )

    def rows(self, query: Any, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of one query."""
        with psycopg.connect(self.postgres_dsn, autocommit=True, connect_timeout=5) as connection:
            return connection.execute(query, values).fetchall()

    async def until(self, holds: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until a condition holds."""
        await self.none_left(lambda: () if holds() else ("it does not hold",), what, seconds)

    async def none_left(
        self, left: Callable[[], Collection[object]], what: str, seconds: float
    ) -> None:
        """Wait until nothing is left."""
        deadline = time.monotonic() + seconds
        while found := left():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{what}: not within {seconds:g} s: {len(found)}, of which {[*found][:5]}"
                )
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def stack(
    folder: Path,
    s3: S3Settings,
    *,
    behind_proxies: Collection[str] = (),
    cut_off: Collection[str] = (),
    groups: Mapping[str, int] | None = None,
    seed: int = 0,
    clocks: Mapping[str, str] | None = None,
) -> AsyncIterator[Stack]:
    """PostgreSQL, Redis, an api, two orchestrators and two agents with a version that sleeps.

    Those of postgres, redis and api that are named are reached through a proxy, by everyone. Nodes in
    `cut_off` reach the api through a proxy of their own; those in `groups` run as a group of their own
    (by its number), so that their packets can be told. `clocks` are settings other than the usual.
    """
    ports = Ports(folder / "ports.json")
    key = mint(TokenKind.KEY).text
    real = {name: ports.take(name) for name in ("postgres", "redis", "api")}
    seen = {n: ports.take(f"{n}-proxy") if n in behind_proxies else real[n] for n in real}
    database = postgres(folder, port=real["postgres"], password="chaos")
    redis = valkey(folder, port=real["redis"], password="chaos")
    url = f"http://127.0.0.1:{seen['api']}"
    env: dict[str, str | None] = {
        **(clocks or _CLOCKS),
        "VYVO_POSTGRES_DSN": _moved(database.url, real["postgres"], seen["postgres"]),
        "VYVO_REDIS_URL": _moved(redis.url, real["redis"], seen["redis"]),
        "VYVO_DATA_DIR": str(folder),
        "VYVO_API_PORT": str(real["api"]),
        "VYVO_API_URL": url,
        "VYVO_ADMIN_KEY": key,
        "VYVO_JOIN_TOKEN": _JOIN_TOKEN,
        "VYVO_S3_ENDPOINT": s3.endpoint,
        "VYVO_S3_ACCESS_KEY": s3.access_key,
        "VYVO_S3_SECRET_KEY": s3.secret_key.get_secret_value(),
        "VYVO_S3_BUCKET_PREFIX": s3.bucket_prefix,
    }
    probe = f"http://127.0.0.1:{real['api']}/readyz"
    parts = [database, redis, _service("api", "api", env, probe, folder)]
    for n in (1, 2):
        health = ports.take(f"orchestrator-{n}")
        own = {**env, "VYVO_ORCHESTRATOR_PORT": str(health)}
        probe = f"http://127.0.0.1:{health}/healthz"
        parts.append(_service(f"orchestrator-{n}", "orchestrator", own, probe, folder))
    for name in NODES:
        if name in cut_off:
            seen[name] = ports.take(f"{name}-proxy")
        own = {
            "VYVO_AGENT_API_URL": f"http://127.0.0.1:{seen.get(name, seen['api'])}",
            "VYVO_AGENT_JOIN_TOKEN": _JOIN_TOKEN,
            "VYVO_AGENT_NAME": name,
            "VYVO_AGENT_DATA_DIR": str(folder / name),
            "VYVO_AGENT_ENV_DIR": str(folder / name / "env"),
            "VYVO_AGENT_ENGINE": "process",
            "VYVO_AGENT_SLOTS": str(SLOTS),
            "VYVO_AGENT_ALLOW_NOOP": "1",
        }
        parts.append(_service(name, "agent", own, None, folder, (groups or {}).get(name)))
    made = Stack(folder, url, key, database.url, redis.url, {p.name: p for p in parts})
    made.proxies = {
        name: LossyProxy(seen[name], real[name], random.Random(f"{seed} {name}"))
        for name in behind_proxies
    } | {
        name: LossyProxy(seen[name], real["api"], random.Random(f"{seed} {name}"))
        for name in cut_off
    }
    try:
        for proxy in made.proxies.values():
            await proxy.start()
        await asyncio.gather(made.start("postgres"), made.start("redis"))
        await asyncio.to_thread(upgrade, database.url)
        await asyncio.gather(*(made.start(p.name) for p in parts[2:]))
        await _load(made)
        yield made
    finally:
        for child in made.children.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGCONT)
        await asyncio.gather(*(stop(child, grace=2.0) for child in made.children.values()))
        for proxy in made.proxies.values():
            await proxy.close()


def _moved(url: str, port: int, to: int) -> str:
    return url.replace(f":{port}/", f":{to}/")


def _service(
    name: str,
    command: str,
    env: dict[str, str | None],
    probe: str | None,
    folder: Path,
    group: int | None = None,
) -> Part:
    async def ready(_: Child) -> None:
        if probe is None:
            return
        try:
            async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
                answer = await client.get(probe)
        except httpx.HTTPError as error:
            raise Unavailable(repr(error)) from error
        if answer.status_code != 200:
            raise Unavailable(f"{probe} answers {answer.status_code}")

    argv = (sys.executable, "-m", "vyvo_dagster.cli", command)
    if group is not None:
        argv = ("setpriv", f"--regid={group}", "--clear-groups", *argv)
    return Part(name=name, argv=argv, url=probe or "", ready=ready, env=env, cwd=folder)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("VYVO_")}


async def _load(made: Stack) -> None:
    """Register the version and have both nodes serve it."""
    async with made.client() as client:
        body = {"modality": "text", "runner_image": "noop://chaos"}
        answer = await client.post("/api/models", json={"model_id": MODEL})
        assert answer.is_success, answer.text
        answer = await client.put(f"/api/models/{MODEL}/versions/v1", json=body)
        assert answer.is_success, answer.text
        deadline = time.monotonic() + 30
        while True:
            nodes = (await client.get("/api/nodes")).json()["items"]
            if sum(n["state"] == "ready" for n in nodes) == len(NODES):
                break
            assert time.monotonic() < deadline, nodes
            await asyncio.sleep(0.1)
        for node in nodes:
            body = {"model_id": MODEL, "version_id": "v1"}
            answer = await client.post(f"/api/nodes/{node['id']}/assign", json=body)
            assert answer.is_success, answer.text
    await made.until(
        lambda: made.rows("select count(*) from assignments where state = 'ready'") == [(2,)],
        "both nodes serve the version", 30,
    )  # fmt: skip
