"""The life of nodes on real processes: lost and back, cut off for a while, drained."""

import asyncio
import contextlib
import hashlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.chaos.check import left_over
from tests.chaos.stack import MODEL, NODES, Stack, stack
from vyvo_dagster.settings import S3Settings

pytestmark = pytest.mark.xdist_group("chaos")

A, B = NODES
LOST_SECONDS = 4.0
MODELS = ("chaos/one", "chaos/two")


async def register(client: httpx.AsyncClient, model: str, image: str) -> None:
    body = {"modality": "text", "runner_image": image}
    assert (await client.post("/api/models", json={"model_id": model})).is_success
    assert (await client.put(f"/api/models/{model}/versions/v1", json=body)).is_success


async def node(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    (found,) = (await client.get("/api/nodes", params={"name": name})).json()["items"]
    return found


async def assign(client: httpx.AsyncClient, name: str, *models: str) -> None:
    node_id = (await node(client, name))["id"]
    for model in models:
        body = {"model_id": model, "version_id": "v1"}
        answer = await client.post(f"/api/nodes/{node_id}/assign", json=body)
        assert answer.is_success, answer.text


async def submit(client: httpx.AsyncClient, model: str, seconds: float) -> str:
    body = {"model_id": model, "input": {"sleep_seconds": seconds}}
    answer = await client.post("/api/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


async def kinds(client: httpx.AsyncClient, name: str) -> list[str]:
    """A node's history, oldest first."""
    path = f"/api/nodes/{(await node(client, name))['id']}/events"
    found = (await client.get(path, params={"limit": 200})).json()["items"]
    return [event["kind"] for event in reversed(found)]


def on(made: Stack, name: str) -> dict[str, str]:
    """State by model of what is in force on a node."""
    return dict(made.rows(
        "select v.model_id, a.state from assignments a join nodes n on n.id = a.node_id"
        " join model_versions v on v.id = a.version_id where n.name = %s and a.state <> 'removed'",
        name,
    ))  # fmt: skip


def attempts(made: Stack, job_id: str) -> list[tuple[Any, ...]]:
    """(node, outcome, code) of each attempt, in order."""
    return made.rows(
        "select n.name, t.outcome, t.error_code from job_attempts t join nodes n on n.id = t.node_id"
        " where t.job_id::text = %s order by t.attempt", job_id,
    )  # fmt: skip


def job(made: Stack, job_id: str) -> tuple[str, str | None]:
    """(state, name of the node)."""
    ((state, name),) = made.rows(
        "select j.state, n.name from jobs j left join nodes n on n.id = j.node_id"
        " where j.id::text = %s", job_id,
    )  # fmt: skip
    return state, name


def state(made: Stack, name: str) -> str:
    return made.rows("select state from nodes where name = %s", name)[0][0]


def env_files(made: Stack, name: str) -> set[str]:
    """Models that the agent has written an environment for."""
    found = [path.read_text() for path in (made.folder / name / "env").glob("*.env")]
    return {m for m in (*MODELS, MODEL) for text in found if m in text}


async def two_models_and_a_job(made: Stack, client: httpx.AsyncClient) -> str:
    for model in MODELS:
        await register(client, model, "noop://life")
    await assign(client, A, *MODELS)
    await made.until(
        lambda: all(on(made, A).get(m) == "ready" for m in MODELS), "both are loaded", 20
    )
    job_id = await submit(client, MODELS[0], 2.5)
    await made.until(lambda: job(made, job_id) == ("running", A), "the job runs", 10)
    return job_id


async def moved(made: Stack, client: httpx.AsyncClient, job_id: str) -> None:
    """The other node has it all, and the job has ended once."""
    await made.until(
        lambda: all(on(made, B).get(m) == "ready" for m in MODELS), "both were placed again", 20
    )
    assert not set(MODELS) & set(on(made, A))
    await made.until(lambda: job(made, job_id) == ("succeeded", B), "the job was done", 20)
    assert attempts(made, job_id) == [(A, "lost", None), (B, "succeeded", None)]
    told = await kinds(client, A)
    assert [k for k in told if k in {"suspect", "lost", "assignment_moved"}] == [
        "suspect", "lost", "assignment_moved", "assignment_moved",
    ]  # fmt: skip
    assert (await kinds(client, B)).count("assigned") == 1 + len(MODELS)


async def test_a_killed_nodes_job_and_models_go_elsewhere_and_it_returns_without_them(
    tmp_path: Path, s3_settings: S3Settings
) -> None:
    async with stack(tmp_path, s3_settings) as made, made.client() as client:
        job_id = await two_models_and_a_job(made, client)
        made.kill(A)
        killed = time.monotonic()
        await made.until(lambda: state(made, A) == "lost", "the node is lost", 3 * LOST_SECONDS)
        assert time.monotonic() - killed > LOST_SECONDS - 1, "it was given up too early"
        await moved(made, client, job_id)
        await made.start(A)
        await made.until(lambda: state(made, A) == "ready", "the node is back", 20)
        await made.until(lambda: on(made, A) == {MODEL: "ready"}, "it serves what is its own", 20)
        again = await submit(client, MODELS[1], 0)
        await made.until(lambda: job(made, again) == ("succeeded", B), "the other node serves", 10)
        assert (await kinds(client, A)).count("joined") == 2
        assert set(on(made, A)) == {MODEL}
        assert on(made, B) == {MODEL: "ready", **dict.fromkeys(MODELS, "ready")}
        await made.none_left(lambda: left_over(made), "streams and outbox are empty", 20)


async def test_a_node_that_stood_still_is_fenced_and_stops_what_it_should_not_run(
    tmp_path: Path, s3_settings: S3Settings
) -> None:
    async with stack(tmp_path, s3_settings) as made, made.client() as client:
        job_id = await two_models_and_a_job(made, client)
        assert env_files(made, A) >= set(MODELS)
        ((boot,),) = made.rows("select boot_id from nodes where name = %s", A)
        made.signal(A, signal.SIGSTOP)
        await made.until(lambda: state(made, A) == "lost", "the node is lost", 3 * LOST_SECONDS)
        await moved(made, client, job_id)
        ended = made.rows("select completed_at, attempt from jobs where id::text = %s", job_id)
        made.signal(A, signal.SIGCONT)
        await made.until(lambda: state(made, A) == "ready", "it has joined again", 20)
        await made.until(lambda: env_files(made, A) == {MODEL}, "it runs no more than its own", 20)
        await made.until(lambda: on(made, A) == {MODEL: "ready"}, "it serves what is its own", 20)
        assert made.rows("select boot_id from nodes where name = %s", A) != [(boot,)]
        assert (
            made.rows("select completed_at, attempt from jobs where id::text = %s", job_id) == ended
        )
        assert len(attempts(made, job_id)) == 2


async def drained(
    made: Stack, client: httpx.AsyncClient, name: str, deadline: float
) -> dict[str, Any]:
    found = await node(client, name)
    answer = await client.post(
        f"/api/nodes/{found['id']}/drain", json={"deadline_seconds": deadline}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["drain"]


def is_drained(made: Stack, name: str) -> bool:
    return made.rows("select drained_at is not null from nodes where name = %s", name) == [(True,)]


async def test_a_drain_lets_a_long_job_end_and_moves_the_models(
    tmp_path: Path, s3_settings: S3Settings
) -> None:
    async with stack(tmp_path, s3_settings) as made, made.client() as client:
        job_id = await two_models_and_a_job(made, client)
        left = await drained(made, client, A, 60)
        assert left["jobs_left"] == 1
        assert set(left["models_to_move"]) == {f"{m}@v1" for m in (*MODELS, MODEL)}
        # What is placed in the very moment of the drain may still go there.
        await asyncio.sleep(0.5)
        waiting = await submit(client, MODELS[0], 0)
        # Its model is on the other node before the long job ends.
        await made.until(lambda: job(made, waiting) == ("succeeded", B), "the other node", 10)
        await made.until(lambda: job(made, job_id) == ("succeeded", A), "the long job", 10)
        assert attempts(made, job_id) == [(A, "succeeded", None)]
        await made.until(lambda: set(on(made, A)) == {MODEL}, "the models have left", 20)
        shown = (await node(client, A))["drain"]
        assert (shown["jobs_left"], shown["models_to_move"]) == (0, [f"{MODEL}@v1"])
        assert "drain_deadline" not in await kinds(client, A)


_HUNG = """
import http.server, json, os, signal, sys, time

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
open("pid", "w").write(str(os.getpid()))

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"status": "READY", "setup": {"status": "succeeded"}})

    def do_POST(self):
        self.answer({})  # a cancel, which changes nothing

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if HANGS:
            time.sleep(3600)
        self.answer({"status": "succeeded", "output": "well"})

    def answer(self, body):
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass

address = ("127.0.0.1", int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""


def runner(made: Stack, name: str, *, hangs: bool) -> tuple[str, Path]:
    """A runner of a node's own, which ignores signals; its image and its folder."""
    hex_ = hashlib.sha256(b"hung").hexdigest()
    root = made.folder / name / "venvs" / hex_
    (root / "app").mkdir(parents=True)
    (root / "app" / "runner.py").write_text(_HUNG.replace("HANGS", str(hangs)))
    command = [sys.executable, "runner.py"]
    (root / "runner.json").write_text(json.dumps({"command": command, "cwd": "app"}))
    return f"venv://sha256:{hex_}", root / "app"


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_a_hung_runner_is_killed_at_the_deadline_and_its_job_done_elsewhere(
    tmp_path: Path, s3_settings: S3Settings
) -> None:
    async with stack(tmp_path, s3_settings) as made, made.client() as client:
        image, folder = runner(made, A, hangs=True)
        runner(made, B, hangs=False)
        await register(client, "chaos/hung", image)
        await assign(client, A, "chaos/hung")
        await made.until(lambda: on(made, A).get("chaos/hung") == "ready", "it is loaded", 20)
        job_id = await submit(client, "chaos/hung", 0)
        await made.until(lambda: job(made, job_id) == ("running", A), "the job runs", 10)
        pid = int((folder / "pid").read_text())
        assert alive(pid)
        await drained(made, client, A, 3)
        began = time.monotonic()
        await made.until(lambda: is_drained(made, A), "the drain is over", 10)
        assert time.monotonic() - began > 2, "the deadline was not waited for"
        await made.until(lambda: not alive(pid), "the runner was killed", 10)
        await made.until(lambda: job(made, job_id) == ("succeeded", B), "it was done", 20)
        assert attempts(made, job_id) == [
            (A, "handed_back", "drain_deadline"), (B, "succeeded", None),
        ]  # fmt: skip
        path = f"/api/nodes/{(await node(client, A))['id']}/events"
        events = (await client.get(path, params={"limit": 50})).json()["items"]
        (said,) = [e["detail"] for e in events if e["kind"] == "drain_deadline"]
        assert said["jobs"] == [str(UUID(job_id))]
        assert (await client.get(f"/api/jobs/{job_id}")).json()["attempts"][0]["error_message"]
