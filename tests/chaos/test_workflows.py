"""20 workflow runs while each process that they need is killed -9 in turn, Dagster's too.

One step of each run has an effect outside, which is counted where it happens.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from vyvo_dagster.local.ports import Ports

# What is killed while so many runs that were just started are under way.
RUNS_EACH = 4
KILLS = (
    ("workflow-engine",),
    ("orchestrator", "postgres"),
    ("redis",),
    ("daemon", "workflow-reporter"),
    ("worker", "workflow-jobs"),
)
RUNS = RUNS_EACH * len(KILLS)
MODEL = "chaos/noop"
# Between two kills, so that each strikes runs at another place.
PAUSE_SECONDS = 2.0
WAIT_SECONDS = 180.0


class Effects:
    """A server that counts what it is asked to do."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str, str]] = []
        """When, which run, and the attempt's idempotency key."""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = dict(
                line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line
            )
            self.seen.append((time.time(), lines["x-run"], lines["idempotency-key"]))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # Its sender was killed.
        finally:
            writer.close()


@asynccontextmanager
async def vyvo_up(folder: Path) -> AsyncIterator[dict[str, Any]]:
    # Of its own, since two stacks that start at a time would both find the usual ones free.
    ports = Ports(folder / "ports.json")
    argv = [sys.executable, "-m", "vyvo_dagster.cli", "up", "--json", "--engine", "process"]
    argv += ["--port", str(ports.take("api")), "--dagster-port", str(ports.take("dagster"))]
    env = {
        **os.environ, "VYVO_AGENT_ALLOW_NOOP": "1", "VYVO_AGENT_SLOTS": "64",
        "VYVO_WEBHOOK_ALLOW_LOOPBACK": "1", "VYVO_WORKFLOW_LEASE_SECONDS": "3",
        "VYVO_MAX_ATTEMPTS": "30",
    }  # fmt: skip
    with (folder / "up.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *argv, "--data-dir", str(folder / "data"), env=env, stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )  # fmt: skip
    assert child.stdout is not None
    try:
        async with asyncio.timeout(150):
            line = await child.stdout.readline()
        assert line, (folder / "up.log").read_text()[-3000:]
        yield json.loads(line)
    finally:
        child.terminate()
        async with asyncio.timeout(60):
            await child.wait()


def document(effects: str) -> dict[str, Any]:
    nap = {"sleep_seconds": 1.0}
    return {
        "name": "chaos",
        "steps": [
            {"name": "first", "model": MODEL, "input": nap},
            {
                "name": "effect", "operation": "http", "needs": ["first"],
                "retries": {"attempts": 5},
                "input": {"url": effects, "method": "POST", "headers": {"x-run": "${{ run.id }}"}},
            },
            {"name": "each", "model": MODEL, "needs": ["effect"], "for_each": [1, 2, 3], "input": nap},
            {"name": "last", "model": MODEL, "needs": ["each"], "input": nap},
        ],
    }  # fmt: skip


@pytest.mark.xdist_group("chaos")
async def test_runs_end_and_no_finished_step_is_done_again(tmp_path: Path) -> None:
    effects = Effects()
    server = await asyncio.start_server(effects.handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, vyvo_up(tmp_path) as up:
        headers = {"Authorization": f"Bearer {up['admin_key']}"}
        async with httpx.AsyncClient(
            base_url=up["api"], headers=headers, timeout=30, trust_env=False
        ) as http:
            await serve_noop(http)
            (await http.post("/api/workflows", json=document(url))).raise_for_status()
            ids: list[str] = []
            for names in KILLS:
                ids += [await start(http, len(ids) + n) for n in range(RUNS_EACH)]
                await until_running(http, ids[-1])
                for name in names:
                    os.kill(up["pids"][name], signal.SIGKILL)
                    await until(lambda name=name: not alive(up["pids"][name]))
                    await asyncio.sleep(PAUSE_SECONDS)
        assert len(set(ids)) == RUNS
        with psycopg.connect(up["postgres_dsn"], autocommit=True) as database:
            await until(lambda: open_runs(database) == 0)
            check(database, ids, effects)
            behind = "select count(*) from workflow_runs where revision > reported_revision"
            await until(lambda: value(database, behind) == 0)
        await check_dagster(up, ids)


async def serve_noop(http: httpx.AsyncClient) -> None:
    version = {"modality": "text", "runner_image": "noop://chaos"}
    (await http.put(f"/api/models/{MODEL}/versions/v1", json=version)).raise_for_status()
    (node,) = (await http.get("/api/nodes")).json()["items"]
    body = {"model_id": MODEL, "version_id": "v1"}
    (await http.post(f"/api/nodes/{node['id']}/assign", json=body)).raise_for_status()
    async with asyncio.timeout(30):
        while True:
            shown = (await http.get(f"/api/nodes/{node['id']}")).json()
            if [a["state"] for a in shown["assignments"]] == ["ready"]:
                return
            await asyncio.sleep(0.1)


async def start(http: httpx.AsyncClient, number: int) -> str:
    """A run of its own number; asked for again where the answer was lost with a server."""
    answer = await asked(
        http, "POST", "/api/workflows/chaos/runs", json={"inputs": {}},
        headers={"Idempotency-Key": f"chaos-{number}"},
    )  # fmt: skip
    return str(answer["run_id"])


async def until_running(http: httpx.AsyncClient, run_id: str) -> None:
    """Wait until its first step is done: what is killed now strikes it in the middle."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            shown = await asked(http, "GET", f"/api/workflow-runs/{run_id}")
            assert shown["status"] in {"queued", "running"}, "it ended before anything was killed"
            if {s["key"]: s["status"] for s in shown["steps"]}["first"] == "succeeded":
                return
            await asyncio.sleep(0.05)


async def asked(http: httpx.AsyncClient, method: str, path: str, **values: Any) -> Any:
    """The answer of an api whose servers may be coming back."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                answer = await http.request(method, path, **values)
            except httpx.TransportError:
                await asyncio.sleep(0.2)
                continue
            if answer.status_code < 500:
                answer.raise_for_status()
                return answer.json()
            await asyncio.sleep(0.2)


def alive(pid: int) -> bool:
    """Whether a process is there; one that was killed and not waited for yet is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def value(database: "psycopg.Connection[Any]", query: str) -> Any:
    row = database.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def open_runs(database: "psycopg.Connection[Any]") -> int:
    query = "select count(*) from workflow_runs where state in ('queued', 'running')"
    return int(value(database, query))


async def until(found: Any) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not found():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.2)


def check(database: "psycopg.Connection[Any]", ids: list[str], effects: Effects) -> None:
    states = dict(
        database.execute("select state, count(*) from workflow_runs group by state").fetchall()
    )
    assert states == {"succeeded": RUNS}
    doubled = (
        "select count(*) from (select workflow_step_id, workflow_step_attempt from jobs "
        "group by 1, 2 having count(*) > 1) d"
    )
    assert value(database, doubled) == 0
    # A step that finished is not done again: its attempt is the first, and has one job.
    again = "select count(*) from workflow_steps where attempt > 1 and name <> 'effect'"
    assert value(database, again) == 0
    ended = {
        str(run): at
        for run, at in database.execute(
            "select run_id, extract(epoch from completed_at) from workflow_steps where name = 'effect'"
        ).fetchall()
    }
    late = [seen for seen in effects.seen if seen[0] > float(ended[seen[1]])]
    assert not late
    # One that was asked twice was under way when its engine died, and can tell so by its key.
    attempts = Counter(run for run, _ in {(run, key) for _, run, key in effects.seen})
    assert attempts.keys() == set(ids)
    assert max(attempts.values()) == 1


async def check_dagster(up: dict[str, Any], ids: list[str]) -> None:
    dsn = f"{up['postgres_dsn'].rpartition('/')[0]}/dagster"
    with psycopg.connect(dsn, autocommit=True) as database:
        ended = (
            "select count(*) from runs where status = 'SUCCESS' and pipeline_name like '%chaos%'"
        )
        assert value(database, ended) == len(ids)
        doubled = (
            "select count(*) from (select run_id, dagster_event_type, step_key, timestamp "
            "from event_logs where run_id in (select run_id from runs where pipeline_name like "
            "'%chaos%') group by 1, 2, 3, 4 having count(*) > 1) d"
        )
        assert value(database, doubled) == 0
