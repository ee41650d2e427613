"""Pools by webhook: what a real HTTP receiver gets, and what its answers make of an operation."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.pool import Change, ScalerKind
from vyvo_dagster.errors import InvalidInput, ScalingFailed, ScalingRefused
from vyvo_dagster.scaling.base import Task
from vyvo_dagster.scaling.scalers import make_scalers
from vyvo_dagster.scaling.webhook import WebhookScaler
from vyvo_dagster.settings import S3Settings

from .own_api import OwnApi, ended, scale, scaled
from .world import JOIN_TOKEN, make_settings, unique

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver:
    """Answers with the statuses that a test queues, else 202; makes machines that join."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[tuple[int, bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                status, said = receiver.answers.pop(0) if receiver.answers else (202, b"")
                if status == 202:
                    receiver.join(json.loads(body)["data"])
                self.send_response(status)
                self.send_header("location", "/elsewhere")
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/vyvo"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def join(self, data: dict[str, Any]) -> None:
        for name in data["add"] if data["api_url"] else ():
            body = {"name": name, "boot_id": str(uuid7()), "capabilities": {
                "hostname": "h", "cpus": 1, "memory_bytes": 1, "engine": "process",
                "agent_version": "0"}}  # fmt: skip
            httpx.post(
                f"{data['api_url']}/api/nodes/register", json=body, trust_env=False,
                headers={"Authorization": f"Bearer {JOIN_TOKEN}"},
            ).raise_for_status()  # fmt: skip

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def own(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings, receiver: Receiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnApi]:  # fmt: skip
    api = OwnApi(
        tmp_path_factory.mktemp("own"), postgres_dsn, redis_url, s3_settings,
        VYVO_SCALER_WEBHOOK_URL=receiver.url, VYVO_SCALER_WEBHOOK_SECRET=SECRET,
    )  # fmt: skip
    try:
        api.start()
        yield api
    finally:
        api.close()


def checked(got: tuple[dict[str, str], bytes]) -> dict[str, Any]:
    """The message, its signature checked by hand as standard-webhooks describes it."""
    headers, body = got
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    message = json.loads(body)
    assert headers["webhook-id"] == message["data"]["operation_id"]
    return message


def test_a_pool_is_scaled_by_a_signed_message(own: OwnApi, receiver: Receiver) -> None:
    name = unique("w")
    asked = {"max_size": 3, "join_seconds": 10, "scaler": {"kind": "webhook"}}
    assert own.client.put(f"/api/node-pools/{name}", json=asked).status_code == 200
    receiver.got.clear()
    tried = scaled(own, name, 2, dry_run=True)
    assert tried["plan"]["message"]["node_names"] == [f"{name}-1", f"{name}-2"]
    assert receiver.got == []
    done = scaled(own, name, 2)
    (got,) = receiver.got
    assert checked(got) == {"type": "node_pool.scale", "data": {
        "operation_id": done["id"], "pool": name, "size": 2, "remove": [],
        "node_names": [f"{name}-1", f"{name}-2"], "add": [f"{name}-1", f"{name}-2"],
        "api_url": own.env["VYVO_API_URL"]}}  # fmt: skip
    assert "try 1: 202" in done["log"]
    scaled(own, name, 1)
    assert checked(receiver.got[-1])["data"]["remove"] == [f"{name}-2"]
    receiver.answers = [(409, b"no  quota\nleft")]
    failed = ended(own, name, scale(own, name, 3)["id"])
    assert (failed["status"], failed["error_code"]) == ("failed", "scaling_refused")
    assert failed["error"] == "the scaler's webhook answered 409: no quota left"
    assert own.client.get(f"/api/node-pools/{name}").json()["size"] == 1


def task() -> tuple[Task, list[str]]:
    said: list[str] = []
    made = Change("w", 1, (), add=("w-1",))
    return Task(uuid7(), "w", {}, made, say=said.append), said


async def test_it_is_tried_again_with_the_same_message(receiver: Receiver) -> None:
    receiver.got.clear()
    receiver.answers = [(503, b""), (429, b"")]
    scaler = WebhookScaler(receiver.url, SECRET, api_url="", pauses=(0, 0, 0))
    asked, said = task()
    await scaler.apply(asked)
    assert said == ["try 1: 503", "try 2: 429", "try 3: 202"]
    assert len({(headers["webhook-id"], body) for headers, body in receiver.got}) == 1
    for got in receiver.got:
        checked(got)


async def test_its_answers_are_judged_and_bounded(receiver: Receiver) -> None:
    scaler = WebhookScaler(receiver.url, SECRET, api_url="", pauses=(0, 0))
    receiver.answers = [(500, b"x" * 100_000), (502, b"")]
    asked, said = task()
    with pytest.raises(ScalingFailed, match="in none of 2 tries"):
        await scaler.apply(asked)
    assert max(map(len, said)) < 2100
    # A redirect is no acceptance, and is not followed.
    receiver.got.clear()
    receiver.answers = [(307, b"")]
    with pytest.raises(ScalingRefused, match="answered 307"):
        await scaler.apply(task()[0])
    assert len(receiver.got) == 1


async def test_a_receiver_that_is_away_is_a_failure() -> None:
    listening = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    scaler = WebhookScaler(f"http://127.0.0.1:{port}", SECRET, api_url="", pauses=(0, 0))
    async with listening:
        with pytest.raises(ScalingFailed, match="in none of 2 tries"):
            await scaler.apply(task()[0])
    asked, said = task()
    with pytest.raises(ScalingFailed):
        await scaler.apply(asked)
    assert said[0].startswith("try 1: no answer")


@pytest.mark.parametrize(
    ("url", "secret", "said"),
    [
        ("ftp://a/b", SECRET, "must be http or https"),
        ("https://u:p@a/b", SECRET, "without a user"),
        ("https://a:port/c", SECRET, "no URL"),
        ("https://a/b", "plain", "whsec_"),
        ("https://a/b", None, "together"),
        (None, SECRET, "together"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(
    url: str | None, secret: str | None, said: str, tmp_path: Path
) -> None:
    settings = make_settings(
        "postgresql://x", "redis://x", tmp_path, scaler_webhook_url=url,
        scaler_webhook_secret=secret,
    )  # fmt: skip
    with pytest.raises(InvalidInput, match=said):
        make_scalers(settings, {})


def test_an_installation_has_the_scalers_that_its_settings_name(tmp_path: Path) -> None:
    def kinds(**values: Any) -> set[ScalerKind]:
        settings = make_settings("postgresql://x", "redis://x", tmp_path, **values)
        return set(make_scalers(settings, {}))

    assert kinds() == {ScalerKind.LOCAL}
    assert kinds(local_agents=0, terraform_modules=tmp_path) == {ScalerKind.TERRAFORM}
    webhook = {"scaler_webhook_url": "https://a/b", "scaler_webhook_secret": SECRET}
    assert kinds(local_agents=0, **webhook) == {ScalerKind.WEBHOOK}


def test_a_pool_of_a_scaler_that_is_not_there_is_refused(admin: httpx.Client) -> None:
    body = {"max_size": 1, "scaler": {"kind": "webhook"}}
    refused = admin.put(f"/api/node-pools/{unique('w')}", json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "scaling_refused")
