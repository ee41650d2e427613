"""Dagster's own webserver behind the api: who comes in, who reads, who changes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from vyvo_dagster.settings import S3Settings

from .fronts import free_port
from .test_auth import make_key
from .world import Api, Running, make_settings

CODE = """
import dagster as dg

@dg.op
def nothing():
    pass

@dg.job
def idle():
    nothing()

@dg.schedule(job=idle, cron_schedule="0 0 1 1 *")
def yearly():
    return dg.RunRequest()

defs = dg.Definitions(jobs=[idle], schedules=[yearly])
"""
READ = "query Version { version }"
CHANGE = "mutation M { setAutoMaterializePaused(paused: false) }"
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def webserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home, port = tmp_path_factory.mktemp("dagster"), free_port()
    (home / "code.py").write_text(CODE)
    url = f"http://127.0.0.1:{port}/dagster"
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("dagster-webserver"), "-f", home / "code.py",
             "-h", "127.0.0.1", "-p", str(port), "--path-prefix", "/dagster"],
            cwd=home, env={**os.environ, "DAGSTER_HOME": str(home)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            try:
                if httpx.get(f"{url}/server_info", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.3)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="module")
def door(
    webserver: str, postgres_dsn: str, redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Api]:  # fmt: skip
    settings = make_settings(
        postgres_dsn, redis_url, tmp_path_factory.mktemp("data"), dagster_url=webserver
    )
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    yield Api(running.url, settings.admin_key.get_secret_value(), settings, s3_settings)
    running.close()


@pytest.fixture(scope="module")
def reader_key(door: Api) -> str:
    with door.client() as admin:
        return str(make_key(admin, "dagster:read")["key"])


def sign_in(door: Api, key: str, **values: Any) -> httpx.Response:
    return httpx.post(
        f"{door.url}/dagster/login", data={"key": key, **values}, headers={"Origin": door.url},
        trust_env=False,
    )  # fmt: skip


def browser(door: Api, key: str) -> httpx.Client:
    """A client with a session and the headers of a page of the api's own."""
    answer = sign_in(door, key)
    assert answer.status_code == 303, answer.text
    cookie = answer.cookies["vyvo_session"]
    headers = {"Cookie": f"vyvo_session={cookie}", "Origin": door.url}
    return httpx.Client(base_url=door.url, headers=headers, trust_env=False, timeout=30)


def ask(client: httpx.Client, query: str, **values: Any) -> httpx.Response:
    return client.post("/dagster/graphql", json={"query": query, **values})


def test_a_stranger_is_sent_to_the_door(door: Api) -> None:
    with door.client("") as stranger:
        answer = stranger.get("/dagster/runs?q=1", headers=HTML)
        assert answer.status_code == 303
        assert answer.headers["location"] == "/dagster/login?next=%2Fdagster%2Fruns%3Fq%3D1"
        page = stranger.get(answer.headers["location"])
        assert page.status_code == 200
        assert 'value="/dagster/runs?q=1"' in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert ask(stranger, READ).status_code == 401
        assert stranger.get("/dagster/server_info").status_code == 401
        assert stranger.get("/dagster").headers["location"] == "/dagster/"


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "https://evil.example",
        "/dagster/\\evil",
        "/api/keys",
        "/dagsterx",
        '/"><s',
    ],
)
def test_the_door_leads_nowhere_else(door: Api, target: str) -> None:
    page = httpx.get(f"{door.url}/dagster/login", params={"next": target}, trust_env=False)
    assert 'name="next" value="/dagster/"' in page.text


def test_an_admin_reads_and_changes_and_the_log_tells(door: Api) -> None:
    with browser(door, door.admin_key) as admin, door.client() as api:
        page = admin.get("/dagster/", headers=HTML)
        assert page.status_code == 200
        assert '"/dagster' in page.text
        assert page.headers["content-security-policy"]
        assert ask(admin, READ).json()["data"]["version"]
        answer = ask(admin, CHANGE)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"] == {"setAutoMaterializePaused": False}
        entry = api.get("/api/audit", params={"action": "dagster"}).json()["items"][0]
        assert entry["subject"] == "setAutoMaterializePaused"
        assert entry["key_prefix"] == door.admin_key.split("_")[1]


def test_files_of_the_ui_come_whole(door: Api, webserver: str) -> None:
    path = "/favicon.png"
    direct = httpx.get(f"{webserver}{path}", trust_env=False)
    with door.client() as admin:
        through = admin.get(f"/dagster{path}")
    assert through.status_code == direct.status_code == 200
    assert through.content == direct.content


def test_a_reader_changes_nothing(door: Api, reader_key: str) -> None:
    with browser(door, reader_key) as reader, door.client(reader_key) as by_header:
        for client in (reader, by_header):
            assert client.get("/dagster/", headers=HTML).status_code == 200
            assert ask(client, READ).json()["data"]["version"]
            refused = ask(client, CHANGE)
            assert refused.status_code == 403
            assert "setAutoMaterializePaused" in refused.json()["errors"][0]["message"]
            # Whichever operation is named, and wherever the mutation hides.
            both = f"{READ} {CHANGE}"
            assert ask(client, both, operationName="Version").status_code == 403
            hidden = "mutation M { ...F } fragment F on Mutation { setAutoMaterializePaused(paused: false) }"
            assert ask(client, hidden).status_code == 403
            for method, path, values in (
                ("GET", "/dagster/graphql", {"params": {"query": CHANGE}}),
                ("POST", "/dagster/graphql", {"params": {"query": CHANGE}}),
                ("POST", "/dagster/graphql/", {"params": {"query": CHANGE}}),
                ("POST", "/dagster/graphql", {"content": CHANGE, "headers": {"Content-Type": "application/graphql"}}),
                ("POST", "/dagster/graphql", {"json": [{"query": CHANGE}]}),
                ("POST", "/dagster/graphql", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
                ("POST", "/dagster/report_asset_materialization/a", {"json": {}}),
                ("PUT", "/dagster/anything", {}),
                ("GET", "/dagster/notebook", {"params": {"path": "/etc/passwd"}}),
                ("GET", "/dagster/logs/%2e%2e/%2e%2e/etc", {}),
            ):  # fmt: skip
                answer = client.request(method, path, **values)
                assert answer.status_code in {400, 403, 404, 415, 422}, (method, path, answer.text)
            # What was in the query string does not go on with the body.
            sent = client.post("/dagster/graphql", params={"query": CHANGE}, json={"query": READ})
            assert list(sent.json()["data"]) == ["version"]
            deep = "{" + "a{" * 3000 + "b" + "}" * 3000 + "}"
            assert ask(client, deep).status_code == 422


def test_other_scopes_do_not_come_in(door: Api) -> None:
    with door.client() as admin:
        key = make_key(admin, "builds:read", "jobs:write")["key"]
    assert sign_in(door, key).status_code == 403
    with door.client(key) as client:
        assert ask(client, READ).status_code == 403
    for bad in ("", "wrong", "vyk_00000000_" + "A" * 43):
        answer = sign_in(door, bad)
        assert answer.status_code == 401
        assert "vyvo_session" not in answer.cookies
        assert bad == "" or bad not in answer.text


def test_the_cookie_is_good_here_only_and_ends_with_its_key(door: Api) -> None:
    with door.client() as admin:
        made = make_key(admin, "admin")
        answer = sign_in(door, made["key"])
        attributes = answer.headers["set-cookie"].lower()
        for attribute in ("httponly", "samesite=lax", "path=/dagster", "max-age=14400"):
            assert attribute in attributes
        assert made["key"] not in attributes
        cookie = answer.cookies["vyvo_session"]
        with browser(door, made["key"]) as client:
            assert ask(client, READ).status_code == 200
            # No other route takes it.
            assert client.get("/api/jobs").status_code == 401
            # Another site's page may not use it; nor one that does not say where it is from.
            for origin in ("https://evil.example", "null", ""):
                headers = {"Origin": origin} if origin else {"Origin": "null"}
                assert client.post(
                    "/dagster/graphql", json={"query": READ}, headers=headers
                ).status_code == 403  # fmt: skip
            prefix, end, mac = cookie.removeprefix("vys_").split("_")
            for forged in (
                f"vys_{prefix}_{int(end) + 1}_{mac}", f"vys_{prefix}_{end}_{'0' * 64}",
                f"vys_{door.admin_key.split('_')[1]}_{end}_{mac}", "vys_", cookie + "0",
            ):  # fmt: skip
                headers = {"Cookie": f"vyvo_session={forged}"}
                assert client.get("/dagster/server_info", headers=headers).status_code == 401
            assert admin.delete(f"/api/keys/{made['id']}").status_code == 204
            assert ask(client, READ).status_code == 401


def test_signing_in_from_another_site_and_signing_out(door: Api, reader_key: str) -> None:
    answer = httpx.post(
        f"{door.url}/dagster/login", data={"key": reader_key}, trust_env=False,
        headers={"Origin": "https://evil.example"},
    )  # fmt: skip
    assert answer.status_code == 403
    with browser(door, reader_key) as client:
        assert client.get("/dagster/logout").status_code == 405
        out = client.post("/dagster/logout")
        assert (out.status_code, out.headers["location"]) == (303, "/dagster/login")
        assert 'vyvo_session=""' in out.headers["set-cookie"]


SUBSCRIBE = "subscription S { locationStateChangeEvents { event { message } } }"


async def drained(socket: ClientConnection) -> None:
    while True:
        await socket.recv()


async def test_subscriptions_go_through_and_change_nothing(door: Api, reader_key: str) -> None:
    url = f"{door.url.replace('http', 'ws', 1)}/dagster/graphql"
    headers = {"Authorization": f"Bearer {reader_key}"}
    options: dict[str, Any] = {"subprotocols": ["graphql-ws"], "proxy": None}
    async with asyncio.timeout(60):
        async with connect(url, additional_headers=headers, **options) as socket:
            await socket.send(json.dumps({"type": "connection_init", "payload": {}}))
            assert json.loads(await socket.recv())["type"] == "connection_ack"
            start = {"id": "1", "type": "start", "payload": {"query": SUBSCRIBE}}
            await socket.send(json.dumps(start))
            await socket.send(json.dumps({"id": "1", "type": "stop"}))
            change = {"id": "2", "type": "start", "payload": {"query": CHANGE}}
            await socket.send(json.dumps(change))
            with pytest.raises(ConnectionClosed) as closed:
                await drained(socket)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
        for bad in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus):
                async with connect(url, additional_headers=bad, **options):
                    pass
        cookie = sign_in(door, reader_key).cookies["vyvo_session"]
        crossed = {"Cookie": f"vyvo_session={cookie}", "Origin": "https://evil.example"}
        with pytest.raises(InvalidStatus):
            async with connect(url, additional_headers=crossed, **options):
                pass
        own = {"Cookie": f"vyvo_session={cookie}", "Origin": door.url}
        async with connect(url, additional_headers=own, **options) as socket:
            await socket.send(json.dumps({"type": "connection_init", "payload": {}}))
            assert json.loads(await socket.recv())["type"] == "connection_ack"


def test_without_dagster_there_is_nothing_there(api: Api) -> None:
    with api.client() as admin:
        assert admin.get("/dagster/").status_code == 404


def test_a_dagster_that_is_away_is_said_so(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings, tmp_path: Path
) -> None:
    settings = make_settings(
        postgres_dsn, redis_url, tmp_path, dagster_url="http://127.0.0.1:1/dagster"
    )
    running = Running(settings, s3_settings)
    try:
        assert settings.admin_key is not None
        headers = {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
        answer = httpx.get(f"{running.url}/dagster/runs", headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    finally:
        running.close()
