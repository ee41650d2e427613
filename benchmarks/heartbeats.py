"""Heartbeats of thousands of nodes against one api process on one core: answer time and CPU share.

    python benchmarks/heartbeats.py [--nodes 2000 4000] [--every 10] [--seconds 60] [--json]

A stack as `vyvo up` starts it, without agents; its api is kept to the first core, all else (PostgreSQL,
Redis, the orchestrator, the nodes) to the others. Each node is one that joined, has a version
loaded and two GPUs, and a connection of its own that stays open. Heartbeats come evenly spread over
the interval. Quoted: how long answers take, what share of its core the api needs, and CPU time by
heartbeat, which must not grow with the number of nodes.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import sqlalchemy as sa
import uvloop
from local_stack import stack
from uuid_utils.compat import uuid7

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_GIB = 2**30
_JOINS_AT_ONCE = 16


@dataclass
class Found:
    """What the nodes of one run heard."""

    seconds: list[float] = field(default_factory=list[float])
    refused: int = 0
    late: int = 0
    """Heartbeats that were due while the one before was not answered."""


class Node(asyncio.Protocol):
    """One node's connection: sends a heartbeat, times its answer."""

    def __init__(self, url: str, node_id: str, boot_id: str, credential: str, loaded: str) -> None:
        self.found: Found | None = None
        self._transport: asyncio.Transport | None = None
        gpu = {"memory_used_bytes": 20 * _GIB, "memory_total_bytes": 80 * _GIB,
               "utilization_ratio": 0.5, "temperature_celsius": 61.0, "lost": None}  # fmt: skip
        body = {
            "boot_id": boot_id, "sent_at": "@", "leaving": False,
            "memory_available_bytes": 200 * _GIB, "gpus": [{"index": i, **gpu} for i in range(2)],
            "running": [],
            "assignments": [{"assignment_id": loaded, "state": "ready", "detail": None, "slots": 1}],
        }  # fmt: skip
        before, after = json.dumps(body).encode().split(b"@")
        # As long as every time that is put there.
        length = len(before) + len(after) + len(_now())
        self._head = (
            f"POST /api/nodes/{node_id}/heartbeat HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
            f"Authorization: Bearer {credential}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode() + before
        self._tail = after
        self._sent = 0.0
        self._read = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._sent and self.found is not None:
            self.found.refused += 1

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def beat(self) -> None:
        """Send one, unless the last is not answered yet."""
        assert self.found is not None
        if self._transport is None:
            self.found.refused += 1
        elif self._sent:
            self.found.late += 1
        else:
            self._sent = time.perf_counter()
            self._transport.write(self._head + _now() + self._tail)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head = self._read.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._read.lower().find(b"content-length: ", 0, head)
        length = int(self._read[at + 16 : self._read.find(b"\r", at)])
        if len(self._read) < head + 4 + length:
            return
        assert self.found is not None
        self.found.seconds.append(time.perf_counter() - self._sent)
        self.found.refused += not self._read.startswith(b"HTTP/1.1 200")
        self._sent = 0.0
        self._read.clear()


def _now() -> bytes:
    return datetime.now(UTC).isoformat(timespec="microseconds").encode()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of the children that it has."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) == pid or int(fields[1]) == pid:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def keep_to(pid: int, cores: set[int]) -> None:
    """Let a process, its threads and its children run on these cores only."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if pid in {int(stat.parent.name), parent}:
                for thread in (stat.parent / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores)
        except OSError:
            continue


async def join(made: dict[str, Any], token: str, count: int) -> list[Node]:
    """`count` nodes that have joined, each with a version loaded."""
    from vyvo_dagster.domain.model import Modality, VersionState
    from vyvo_dagster.domain.node import AssignmentState
    from vyvo_dagster.store.assignments import Observation
    from vyvo_dagster.store.database import Database

    database = Database(made["postgres_dsn"], pool_size=4)
    model_id = f"bench/{uuid7().hex[-12:]}"
    async with database.transaction() as store:
        await store.models.ensure(model_id, "admin")
        version = await store.models.create_draft(
            id=uuid7(), model_id=model_id, version="v1", template="none", modality=Modality.TEXT,
            values={"runner_image": "noop://bench"},
        )  # fmt: skip
        assert version is not None
        await store.models.move(version.id, VersionState.READY)
    gpus = [{"index": i, "uuid": f"GPU-{i}", "name": "sim", "memory_bytes": 80 * _GIB}
            for i in range(2)]  # fmt: skip
    has = {"hostname": "sim", "cpus": 64, "memory_bytes": 256 * _GIB, "gpus": gpus,
           "engine": "docker", "agent_version": "bench"}  # fmt: skip
    headers = {"Authorization": f"Bearer {token}"}
    gate = asyncio.Semaphore(_JOINS_AT_ONCE)
    async with httpx.AsyncClient(
        base_url=made["api"], headers=headers, trust_env=False, timeout=60
    ) as http:

        async def one() -> Node:
            boot = str(uuid7())
            body = {"name": f"sim-{uuid7().hex[-12:]}", "boot_id": boot, "capabilities": has}
            async with gate:
                answer = await http.post("/api/nodes/register", json=body)
                answer.raise_for_status()
                joined = answer.json()
                async with database.transaction() as store:
                    asked = await store.assignments.request(
                        id=uuid7(), node_id=joined["node_id"], version_id=version.id
                    )
                    seen = Observation(asked.id, AssignmentState.READY, None, 1)
                    await store.assignments.observe([(UUID(joined["node_id"]), seen)])
            return Node(made["api"], joined["node_id"], boot, joined["credential"], str(asked.id))

        nodes = await asyncio.gather(*(one() for _ in range(count)))
    async with database.transaction() as store:
        # On a busy machine the last join may be a minute after the first, which would be lost by now.
        await store.connection.execute(
            sa.text("update nodes set state = 'ready', last_heartbeat_at = now()")
        )
    await database.close()
    return nodes


async def beats(nodes: list[Node], every: float, seconds: float) -> Found:
    """Let all nodes beat for `seconds`, evenly spread; what they heard."""
    found = Found()
    for node in nodes:
        node.found = found
    began, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - began) < seconds:
        due = int(now / every * len(nodes))
        while sent < due:
            nodes[sent % len(nodes)].beat()
            sent += 1
        await asyncio.sleep(0.001)
    await asyncio.sleep(1.0)
    return found


async def measure(made: dict[str, Any], token: str, count: int, every: float,
                  seconds: float) -> dict[str, Any]:  # fmt: skip
    """One run with `count` nodes."""
    nodes = await join(made, token, count)
    parts = urlsplit(made["api"])
    loop = asyncio.get_running_loop()
    for node in nodes:
        await loop.create_connection(lambda node=node: node, parts.hostname, parts.port)
    # The first heartbeat of each makes the answer that the next ones get, and costs several times as much.
    await beats(nodes, every, 2.5 * every)
    pids = made["pids"]
    before = {name: cpu_seconds(pids[name]) for name in ("api", "postgres")}
    found = await beats(nodes, every, seconds)
    spent = {name: cpu_seconds(pids[name]) - was for name, was in before.items()}
    took = sorted(found.seconds)
    for node in nodes:
        node.close()
    return {
        "nodes": count, "heartbeats": len(took), "refused": found.refused, "late": found.late,
        "answer_ms": {p: round(1000 * took[min(int(len(took) * q), len(took) - 1)], 1)
                      for p, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
        "api_cpu_share": round(spent["api"] / (seconds + 1), 3),
        "api_cpu_us_per_heartbeat": round(1e6 * spent["api"] / len(took)),
        "postgres_cpu_us_per_heartbeat": round(1e6 * spent["postgres"] / len(took)),
    }  # fmt: skip


async def main(counts: list[int], every: float, seconds: float, *, as_json: bool) -> int:
    """Measure each number of nodes in a stack of its own; 1 where a heartbeat was refused."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this needs two cores: one for the api alone")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * max(counts) + 1000
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    bad = 0
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            with stack(data, "--no-dagster", "--agents", "0") as made:
                token = json.loads((data / "secrets.json").read_text())["join_token"]
                os.sched_setaffinity(0, set(cores[1:]))
                for name, pid in made["pids"].items():
                    keep_to(pid, set(cores[:1] if name == "api" else cores[1:]))
                found = await measure(made, token, count, every, seconds)
        os.sched_setaffinity(0, set(cores))
        bad += found["refused"] + found["late"]
        if as_json:
            sys.stdout.write(json.dumps(found) + "\n")
        else:
            for name, value in found.items():
                sys.stdout.write(f"{name:30} {value}\n")
            sys.stdout.write("\n")
        sys.stdout.flush()
    return bool(bad)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[2000, 4000])
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.nodes, args.every, args.seconds, as_json=args.json)))
