"""Credentials, scopes and tenants, over HTTP."""

from typing import Any

import httpx
import pytest

from vyvo_dagster.store.database import Database

from .world import WEIGHTS, Agent, Api, Version, ready_version, unique


def make_key(
    admin: httpx.Client, *scopes: str, tenant: str = "acme", **values: Any
) -> dict[str, Any]:
    body = {"name": "test", "tenant": tenant, "scopes": scopes, **values}
    answer = admin.post("/api/keys", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (None, ""),
        ("Authorization", "Bearer wrong"),
        ("Authorization", "Bearer vyk_00000000_" + "A" * 43),
        ("Authorization", "Basic dXNlcjpwYXNz"),
        ("X-API-Key", "vyk_00000000_" + "A" * 43),
        ("Authorization", "Bearer " + "x" * 5000),
    ],
)
def test_a_request_without_a_good_key_is_refused(api: Api, header: str | None, value: str) -> None:
    headers = {header: value} if header else {}
    answer = httpx.get(f"{api.url}/api/jobs", headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["code"] == "unauthenticated"


def test_the_key_may_come_in_either_header(api: Api) -> None:
    answer = httpx.get(f"{api.url}/api/jobs", headers={"X-API-Key": api.admin_key}, trust_env=False)
    assert answer.status_code == 200


def test_a_key_does_what_its_scopes_say_and_no_more(api: Api, admin: httpx.Client) -> None:
    key = make_key(admin, "jobs:read")["key"]
    with api.client(key) as client:
        assert client.get("/api/jobs").status_code == 200
        refused = client.post("/api/jobs", json={"model_id": "a/b", "input": {}})
        assert refused.status_code == 403
        assert refused.json()["code"] == "forbidden"
        assert refused.json()["scope"] == "jobs:write"
        assert client.get("/api/keys").status_code == 403
        assert client.get("/api/builds").status_code == 403


def test_writing_includes_reading(api: Api, admin: httpx.Client) -> None:
    key = make_key(admin, "jobs:write")["key"]
    with api.client(key) as client:
        assert client.get("/api/jobs").status_code == 200


def test_the_secret_is_shown_once_and_a_revoked_key_ends_at_once(
    api: Api, admin: httpx.Client
) -> None:
    made = make_key(admin, "jobs:read")
    assert made["key"].startswith(f"vyk_{made['prefix']}_")
    listed = admin.get("/api/keys", params={"limit": 200}).json()["items"]
    (shown,) = [k for k in listed if k["id"] == made["id"]]
    assert "key" not in shown
    with api.client(made["key"]) as client:
        assert client.get("/api/jobs").status_code == 200
        assert admin.delete(f"/api/keys/{made['id']}").status_code == 204
        assert admin.delete(f"/api/keys/{made['id']}").status_code == 204
        assert client.get("/api/jobs").status_code == 401


async def test_only_the_hash_is_stored(admin: httpx.Client, database: Database) -> None:
    made = make_key(admin, "jobs:read")
    async with database.transaction() as store:
        found = await store.keys.find(made["prefix"])
    assert found is not None
    assert made["key"].encode() not in found[1]
    assert len(found[1]) == 32


def test_an_expired_key_is_refused(api: Api, admin: httpx.Client) -> None:
    import time

    key = make_key(admin, "jobs:read", expires_in_seconds=1)["key"]
    with api.client(key) as client:
        assert client.get("/api/jobs").status_code == 200
        time.sleep(1.1)
        assert client.get("/api/jobs").status_code == 401


def test_the_node_scope_is_not_for_sale(admin: httpx.Client) -> None:
    body = {"name": "n", "tenant": "acme", "scopes": ["node"]}
    assert admin.post("/api/keys", json=body).status_code == 422


async def test_a_tenant_sees_its_own_jobs_only(
    api: Api, admin: httpx.Client, database: Database
) -> None:
    version = await ready_version(database)
    mine = make_key(admin, "jobs:write", tenant=unique("t"))["key"]
    other = make_key(admin, "jobs:write", "artifacts:read", tenant=unique("t"))["key"]
    body = {"model_id": version.model_id, "input": {"digit": 1}}
    with api.client(mine) as client, api.client(other) as stranger:
        job_id = client.post("/api/jobs", json=body).json()["job_id"]
        assert client.get(f"/api/jobs/{job_id}").status_code == 200
        for answer in (
            stranger.get(f"/api/jobs/{job_id}"),
            stranger.post(f"/api/jobs/{job_id}/cancel"),
            stranger.patch(f"/api/jobs/{job_id}", json={"priority": "batch"}),
            stranger.get(f"/api/jobs/{job_id}/events"),
        ):
            assert answer.status_code == 404
            assert answer.json()["code"] == "not_found"
        assert stranger.get("/api/jobs").json()["items"] == []
        assert [j["job_id"] for j in client.get("/api/jobs").json()["items"]] == [job_id]
        assert admin.get(f"/api/jobs/{job_id}").status_code == 200


def test_a_model_of_another_tenant_cannot_be_changed(
    api: Api, admin: httpx.Client, version: Version
) -> None:
    key = make_key(admin, "models:write", "builds:write")["key"]
    with api.client(key) as client:
        path = f"/api/models/{version.model_id}"
        assert client.get(path).status_code == 200
        assert client.patch(path, json={"description": "mine"}).status_code == 403
        assert client.post(f"{path}/promote", json={"version": "v1"}).status_code == 403
        build = {"template": "digits-diffusion", "runner_name": "r", "version": "v2", **WEIGHTS}
        answer = client.post("/api/builds", json={**build, "model_id": version.model_id})
        assert answer.status_code == 403


def test_a_node_acts_for_itself_only(api: Api, admin: httpx.Client, agent: Agent) -> None:
    other = Agent(api)
    other.register()
    body = {"boot_id": str(other.boot_id), "sent_at": "2026-01-01T00:00:00Z"}
    answer = agent.post(f"/api/nodes/{other.id}/heartbeat", body)
    assert answer.status_code == 403
    assert agent.client.get(
        "/api/nodes", headers={"Authorization": f"Bearer {agent.credential}"}
    ).status_code == 403  # fmt: skip
    # An admin's key is no node's credential.
    assert admin.post(f"/api/nodes/{agent.id}/heartbeat", json=body).status_code == 403
    other.client.close()
