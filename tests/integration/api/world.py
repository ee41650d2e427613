"""A real api (uvicorn in a thread), and a node's agent and a model to play with."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa
import uvicorn
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from api.app import create_app
from api.server import Server
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.security.keys import TokenKind, mint
from vyvo_dagster.settings import S3Settings, Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.dispatches import Dispatch
from vyvo_dagster.store.records import Job

JOIN_TOKEN = "a-join-token"
SCHEMA = {
    "type": "object",
    "required": ["digit"],
    "additionalProperties": False,
    "properties": {
        "digit": {"type": "integer", "minimum": 0, "maximum": 9},
        "note": {"type": "string"},
    },
}


# Of a build whose weights nobody fetches.
WEIGHTS = {"weights_uri": "s3://vyvo-model/weights/sha256/" + "0" * 64}


def unique(prefix: str) -> str:
    return f"{prefix}{uuid7().hex[-12:]}"


@dataclass
class Api:
    """A running api."""

    url: str
    admin_key: str
    settings: Settings
    s3: S3Settings

    def client(self, key: str | None = None) -> httpx.Client:
        token = self.admin_key if key is None else key
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=10, trust_env=False)


class Running:
    """`create_app` served on a free port by a thread, until closed."""

    def __init__(self, settings: Settings, s3: S3Settings) -> None:
        config = uvicorn.Config(
            create_app(settings, s3), port=0, log_config=None, access_log=False, lifespan="on",
            loop="uvloop", http="httptools", ws="websockets-sansio", timeout_graceful_shutdown=3,
        )  # fmt: skip
        self.server = Server(config)
        self.thread = threading.Thread(target=self.server.run, name="api")
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started:
            assert self.thread.is_alive(), "the api did not start"
            assert time.monotonic() < deadline, "the api did not start in time"
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def close(self) -> float:
        """Stop; how many seconds that took."""
        started = time.monotonic()
        self.server.should_exit = True
        self.thread.join(15)
        assert not self.thread.is_alive()
        return time.monotonic() - started


def make_settings(postgres_dsn: str, redis_url: str, data_dir: Path, **values: Any) -> Settings:
    return Settings(
        _env_file=None, postgres_dsn=postgres_dsn, redis_url=redis_url, data_dir=data_dir,
        admin_key=SecretStr(mint(TokenKind.KEY).text), join_token=SecretStr(JOIN_TOKEN),
        **{"auth_failures_per_minute": 0, **values},
    )  # fmt: skip


@dataclass
class Version:
    id: UUID
    model_id: str
    name: str


async def ready_version(
    database: Database, tenant: str = "admin", schema: Mapping[str, Any] | None = SCHEMA
) -> Version:
    """A version as a build leaves it."""
    model_id, name = f"test/{unique('m')}", "v1"
    async with database.transaction() as store:
        await store.models.ensure(model_id, tenant)
        made = await store.models.create_draft(
            id=uuid7(), model_id=model_id, version=name, template="digits-diffusion",
            modality=Modality.IMAGE,
            values={"runner_image": "venv://sha256:" + "0" * 64, "input_schema": schema,
                    "weights_uri": "s3://somewhere/weights"},
        )  # fmt: skip
        assert made is not None
        await store.models.move(made.id, VersionState.READY)
    return Version(made.id, model_id, name)


class Agent:
    """A node's agent, played over HTTP."""

    def __init__(self, api: Api, name: str | None = None) -> None:
        self.api = api
        self.name = name or unique("node-")
        self.client = api.client("")
        self.boot_id = uuid7()
        self.id = UUID(int=0)
        self.credential = ""

    def register(self, token: str = JOIN_TOKEN, **capabilities: Any) -> dict[str, Any]:
        self.boot_id = uuid7()
        body = {
            "name": self.name, "boot_id": str(self.boot_id), "labels": {"zone": "a"},
            "capabilities": {"hostname": "h", "cpus": 2, "memory_bytes": 1 << 30,
                             "engine": "process", "agent_version": "0", **capabilities},
        }  # fmt: skip
        answer = self.post("/api/nodes/register", body, token)
        assert answer.status_code == 200, answer.text
        joined: dict[str, Any] = answer.json()
        self.id = UUID(joined["node_id"])
        self.credential = joined["credential"] or self.credential
        return joined

    def post(self, path: str, body: Any, token: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.credential if token is None else token}"}
        return self.client.post(path, json=body, headers=headers)

    def beat(self, **values: Any) -> httpx.Response:
        body = {"boot_id": str(self.boot_id), "sent_at": datetime.now(UTC).isoformat(), **values}
        return self.post(f"/api/nodes/{self.id}/heartbeat", body)

    def report(self, assignment_id: str, state: str, **values: Any) -> httpx.Response:
        seen = {"assignment_id": assignment_id, "state": state, **values}
        return self.beat(assignments=[seen])

    def complete(self, job_id: UUID, attempt: int, status: str, **values: Any) -> httpx.Response:
        body = {"attempt": attempt, "status": status, **values}
        return self.post(f"/api/jobs/{job_id}/complete", body)


async def load(admin: httpx.Client, agent: Agent, version: Version) -> UUID:
    """Assign a version and let the agent report it ready; the assignment's id."""
    answer = admin.post(
        f"/api/nodes/{agent.id}/assign",
        json={"model_id": version.model_id, "version_id": str(version.id)},
    )
    assert answer.status_code == 202, answer.text
    assert agent.report(answer.json()["id"], "ready").status_code == 200
    return UUID(answer.json()["id"])


async def dispatch(database: Database, job_id: str, agent: Agent, assignment_id: UUID) -> Job:
    """What the orchestrator does: a new attempt on this node, without the wait before a retry."""
    async with database.transaction() as store:
        await store.connection.execute(
            sa.text("update jobs set retry_at = null where id = :id"), {"id": job_id}
        )
        placed = [Dispatch(UUID(job_id), agent.id, assignment_id)]
        (order,) = await store.dispatches.claim(placed, timedelta(seconds=60))
        job = await store.jobs.get(order.job_id, None)
    assert job is not None
    return job
