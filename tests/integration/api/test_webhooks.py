"""Webhooks: a real receiver that takes, fails, hangs and redirects."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.dispatch.requeue import requeue_lost
from vyvo_dagster.dispatch.webhooks import WebhookSender
from vyvo_dagster.domain.webhook import sign
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.attempts import LOST, Gone
from vyvo_dagster.store.database import Database

from .test_auth import make_key
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


@dataclass
class Receiver:
    """Answers what `answers` says, then 204; a number is a status, a text a redirect, None a hang."""

    answers: list[int | str | None] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                answer = receiver.answers.pop(0) if receiver.answers else 204
                if answer is None:
                    receiver.released.wait(20)
                    return
                self.send_response(307 if isinstance(answer, str) else answer)
                if isinstance(answer, str):
                    self.send_header("Location", answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def open_api(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Api]:  # fmt: skip
    """An api that lets webhooks go to this machine."""
    settings = make_settings(
        postgres_dsn, redis_url, tmp_path_factory.mktemp("data"), webhook_allow_loopback=True
    )
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    yield Api(running.url, settings.admin_key.get_secret_value(), settings, s3_settings)
    running.close()


@dataclass
class Tenant:
    """A tenant of a test's own, so that its secret and deliveries are nobody else's."""

    client: httpx.Client
    name: str
    secret: str
    version: Version

    def submit(self, url: str, **webhook: Any) -> str:
        body = {"model_id": self.version.model_id, "input": {"digit": 1},
                "webhook": {"url": url, **webhook}}  # fmt: skip
        answer = self.client.post("/api/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    def deliveries(self, job_id: str) -> list[dict[str, Any]]:
        return self.client.get(f"/api/jobs/{job_id}/webhooks").json()

    async def until(self, job_id: str, *states: str) -> list[dict[str, Any]]:
        async with asyncio.timeout(30):
            while True:
                found = self.deliveries(job_id)
                if found and all(d["state"] in states for d in found):
                    return found
                await asyncio.sleep(0.05)


@pytest.fixture
async def tenant(open_api: Api, database: Database) -> AsyncIterator[Tenant]:
    name = unique("t")
    with open_api.client() as admin:
        key = make_key(admin, "jobs:write", tenant=name)["key"]
    with open_api.client(key) as client:
        secret = client.post("/api/webhook-secret").json()["secret"]
        yield Tenant(client, name, secret, await ready_version(database))


@pytest.fixture
async def senders(database: Database) -> AsyncIterator[None]:
    """Two at once, as two orchestrators; patient for a moment only."""
    made = [
        WebhookSender(
            database, allow_loopback=True, sweep_seconds=0.05, try_seconds=0.5,
            pauses=lambda tries: 0.05 if tries < 5 else None,
        )
        for _ in range(2)
    ]  # fmt: skip
    tasks = [asyncio.create_task(sender.run()) for sender in made]
    yield
    await cancel_all(tasks)


async def put(database: Database, statement: str, **values: Any) -> None:
    async with database.transaction() as store:
        await store.connection.execute(sa.text(statement), values)


@pytest.mark.usefixtures("senders")
async def test_an_end_is_told_once_signed_with_its_artifacts(
    admin: httpx.Client, agent: Agent, tenant: Tenant, receiver: Receiver, database: Database
) -> None:
    assignment_id = await load(admin, agent, tenant.version)
    job_id = tenant.submit(receiver.url)
    job = await dispatch(database, job_id, agent, assignment_id)
    artifact = {"type": "image", "url": f"s3://{agent.api.s3.bucket_prefix}image/{job_id}.png",
                "size_bytes": 4, "mime_type": "image/png"}  # fmt: skip
    for _ in range(2):
        done = agent.complete(
            job.id, 1, "succeeded", artifacts=[artifact], output={"seed": 1}, timings={"run": 2.5}
        )
        assert done.status_code == 200, done.text
    (delivery,) = await tenant.until(job_id, "delivered")
    assert (delivery["event"], delivery["tries"], delivery["last_status"]) == (
        "job.succeeded", 1, 204,
    )  # fmt: skip
    await asyncio.sleep(0.3)
    ((headers, body),) = receiver.got
    assert headers["webhook-id"] == delivery["id"]
    at = int(headers["webhook-timestamp"])
    assert abs(time.time() - at) < 30
    assert headers["webhook-signature"] == sign([tenant.secret], delivery["id"], at, body)
    told = json.loads(body)
    assert told["type"] == "job.succeeded"
    data = told["data"]
    assert (data["job_id"], data["status"], data["output"]) == (job_id, "succeeded", {"seed": 1})
    assert (data["timings"], data["output_omitted"], data["error"]) == ({"run": 2.5}, False, None)
    assert data["artifacts"][0]["url"] == artifact["url"]


@pytest.mark.usefixtures("senders")
async def test_a_receiver_that_fails_is_tried_again_with_the_same_id(
    tenant: Tenant, receiver: Receiver
) -> None:
    receiver.answers += [500, None, "http://127.0.0.1:1/elsewhere", 204]
    job_id = tenant.submit(receiver.url)
    tenant.client.post(f"/api/jobs/{job_id}/cancel")
    (delivery,) = await tenant.until(job_id, "delivered")
    assert delivery["tries"] == 4
    assert receiver.ids() == [delivery["id"]] * 4
    assert len({body for _, body in receiver.got}) == 1


@pytest.mark.usefixtures("senders")
async def test_after_five_tries_it_has_failed_and_can_be_asked_for_again(
    tenant: Tenant, receiver: Receiver
) -> None:
    other = Receiver()
    receiver.answers += [503, 404, None, other.url, 500]
    job_id = tenant.submit(receiver.url)
    tenant.client.post(f"/api/jobs/{job_id}/cancel")
    (delivery,) = await tenant.until(job_id, "failed")
    assert (delivery["tries"], delivery["last_error"]) == (5, "it answered 500")
    assert other.got == [], "a redirect is not followed"
    other.close()
    assert tenant.client.get(f"/api/jobs/{job_id}").json()["status"] == "canceled"
    path = f"/api/jobs/{job_id}/webhooks/{delivery['id']}/redeliver"
    assert tenant.client.post(path).status_code == 202
    (again,) = await tenant.until(job_id, "delivered")
    assert (again["id"], again["tries"]) == (delivery["id"], 1)
    assert receiver.ids() == [delivery["id"]] * 6


@pytest.mark.usefixtures("senders")
async def test_a_receiver_that_is_gone_is_left_alone(tenant: Tenant, receiver: Receiver) -> None:
    receiver.answers += [410]
    job_id = tenant.submit(receiver.url)
    tenant.client.post(f"/api/jobs/{job_id}/cancel")
    (delivery,) = await tenant.until(job_id, "failed")
    assert (delivery["tries"], len(receiver.got)) == (1, 1)


async def test_every_way_to_end_is_told(
    admin: httpx.Client, agent: Agent, tenant: Tenant, receiver: Receiver, database: Database
) -> None:
    assignment_id = await load(admin, agent, tenant.version)
    canceled, expired, lost, failed, unasked = (
        tenant.submit(receiver.url, **({} if n < 4 else {"events": ["succeeded"]}))
        for n in range(5)
    )
    for job_id in (canceled, unasked):
        tenant.client.post(f"/api/jobs/{job_id}/cancel")
    await put(database, "update jobs set expires_at = now() - interval '1 s' where id = :id",
              id=expired)  # fmt: skip
    async with database.transaction() as store:
        await store.jobs.expire(500)
    for _ in range(3):
        job = await dispatch(database, lost, agent, assignment_id)
        async with database.transaction() as store:
            await requeue_lost(store, job, Gone(LOST), charged=True)
    job = await dispatch(database, failed, agent, assignment_id)
    agent.complete(job.id, 1, "failed", error={"code": "prediction_failed", "message": "no"})
    told = {
        job_id: [d["event"] for d in tenant.deliveries(job_id)]
        for job_id in (canceled, expired, lost, failed, unasked)
    }
    assert told == {
        canceled: ["job.canceled"], expired: ["job.expired"], lost: ["job.failed"],
        failed: ["job.failed"], unasked: [],
    }  # fmt: skip
    # A second life has an end of its own.
    tenant.client.post(f"/api/jobs/{canceled}/requeue")
    tenant.client.post(f"/api/jobs/{canceled}/cancel")
    assert len({d["id"] for d in tenant.deliveries(canceled)}) == 2


async def test_what_ends_in_a_transaction_that_fails_is_not_told(
    tenant: Tenant, receiver: Receiver, database: Database
) -> None:
    job_id = tenant.submit(receiver.url)

    async def failing() -> None:
        async with database.transaction() as store:
            assert await store.jobs.cancel_queued(UUID(job_id)) is not None
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await failing()
    assert tenant.deliveries(job_id) == []


async def test_a_name_that_points_inside_is_not_called(
    tenant: Tenant, receiver: Receiver, database: Database
) -> None:
    asked: list[str] = []

    async def rebinding(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return ["93.184.216.34", "127.0.0.1"]

    job_id = tenant.submit(f"https://hooks.example.com:{receiver.server.server_port}/hook")
    tenant.client.post(f"/api/jobs/{job_id}/cancel")
    sender = WebhookSender(
        database, allow_loopback=True, resolver=rebinding, sweep_seconds=0.05,
        pauses=lambda tries: None,
    )  # fmt: skip
    task = asyncio.create_task(sender.run())
    (delivery,) = await tenant.until(job_id, "failed")
    await cancel_all([task])
    assert "may not be called" in delivery["last_error"]
    assert "hooks.example.com" in asked
    assert receiver.got == []


@pytest.mark.usefixtures("senders")
async def test_a_replaced_secret_signs_beside_the_new_one(
    tenant: Tenant, receiver: Receiver
) -> None:
    mine = "whsec_" + "A" * 43 + "="
    assert tenant.client.post("/api/webhook-secret", json={"secret": mine}).json() == {
        "secret": mine
    }
    job_id = tenant.submit(receiver.url)
    tenant.client.post(f"/api/jobs/{job_id}/cancel")
    await tenant.until(job_id, "delivered")
    ((headers, body),) = receiver.got
    at = int(headers["webhook-timestamp"])
    assert headers["webhook-signature"] == sign(
        [mine, tenant.secret], headers["webhook-id"], at, body
    )


def test_what_is_refused(tenant: Tenant, api: Api, admin: httpx.Client, version: Version) -> None:
    def post(client: httpx.Client, webhook: Any) -> tuple[int, str]:
        body = {"model_id": version.model_id, "input": {"digit": 1}, "webhook": webhook}
        answer = client.post("/api/jobs", json=body)
        return answer.status_code, answer.json()["code"]

    assert post(tenant.client, {"url": "http://10.0.0.1/x"}) == (422, "invalid_webhook")
    assert post(tenant.client, {"url": "https://x.example", "events": []}) == (422, "invalid_input")
    assert post(tenant.client, {"url": "https://x.example", "events": ["queued"]})[0] == 422
    assert post(tenant.client, {"url": "https://x.example", "secret": "x"})[0] == 422
    # An api as it is by default calls nothing on its own machine.
    assert post(admin, {"url": "http://127.0.0.1:80/x"}) == (422, "invalid_webhook")
    with api.client(make_key(admin, "jobs:write", tenant=unique("bare"))["key"]) as bare:
        assert post(bare, {"url": "https://x.example"}) == (409, "conflict")
        wrong = bare.post("/api/webhook-secret", json={"secret": "short"})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_webhook")
    batch = {"jobs": [{"model_id": version.model_id, "input": {"digit": 1}},
                      {"model_id": version.model_id, "input": {"digit": 1},
                       "webhook": {"url": "https://10.0.0.1"}}]}  # fmt: skip
    refused = tenant.client.post("/api/jobs/batch", json=batch)
    assert (refused.status_code, refused.json()["index"]) == (422, 1)


async def test_deliveries_are_their_tenants(
    api: Api, admin: httpx.Client, tenant: Tenant, receiver: Receiver
) -> None:
    job_id = tenant.submit(receiver.url)
    tenant.client.post(f"/api/jobs/{job_id}/cancel")
    (delivery,) = tenant.deliveries(job_id)
    path = f"/api/jobs/{job_id}/webhooks/{delivery['id']}/redeliver"
    assert tenant.client.post(path).json()["code"] == "illegal_transition"
    assert tenant.client.post(path.replace(delivery["id"], job_id)).status_code == 404
    with api.client(make_key(admin, "jobs:write", tenant=unique("o"))["key"]) as other:
        assert other.get(f"/api/jobs/{job_id}/webhooks").status_code == 404
        assert other.post(path).status_code == 404
