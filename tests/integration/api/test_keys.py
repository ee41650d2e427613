"""Keys: found by their prefix, rotated with an overlap, and what the audit log says of them."""

import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from vyvo_dagster.store.database import Database

from .test_auth import make_key
from .world import Api, unique


def test_a_rotated_key_goes_on_until_the_overlap_is_over(api: Api, admin: httpx.Client) -> None:
    old = make_key(admin, "jobs:read", limits={"max_queued": 7})
    answer = admin.post(f"/api/keys/{old['id']}/rotate", json={"overlap_seconds": 2})
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    new = answer.json()
    assert new["key"] != old["key"]
    for same in ("name", "tenant", "scopes", "limits", "expires_at"):
        assert new[same] == old[same]
    with api.client(old["key"]) as before, api.client(new["key"]) as after:
        assert before.get("/api/jobs").status_code == 200
        assert after.get("/api/jobs").status_code == 200
        deadline = time.monotonic() + 30
        while before.get("/api/jobs").status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert after.get("/api/jobs").status_code == 200
    # What has ended has no successor.
    assert admin.post(f"/api/keys/{old['id']}/rotate").status_code == 409


def test_a_successor_gets_as_long_a_life_and_no_overlap_prolongs_one(admin: httpx.Client) -> None:
    old = make_key(admin, "jobs:read", expires_in_seconds=3600)
    new = admin.post(f"/api/keys/{old['id']}/rotate").json()
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    assert abs(datetime.fromisoformat(new["expires_at"]) - in_an_hour) < timedelta(minutes=5)
    (shown,) = admin.get("/api/keys", params={"prefix": old["prefix"]}).json()["items"]
    assert shown["expires_at"] == old["expires_at"]


def test_the_configured_admin_key_is_not_rotated_here(api: Api, admin: httpx.Client) -> None:
    prefix = api.admin_key.split("_")[1]
    (shown,) = admin.get("/api/keys", params={"prefix": prefix}).json()["items"]
    answer = admin.post(f"/api/keys/{shown['id']}/rotate")
    assert answer.status_code == 409
    assert "VYVO_ADMIN_KEY" in answer.json()["detail"]


def test_keys_are_found_by_prefix_and_tenant(admin: httpx.Client) -> None:
    tenant = unique("t")
    made = [make_key(admin, "jobs:read", tenant=tenant) for _ in range(2)]
    found = admin.get("/api/keys", params={"tenant": tenant}).json()["items"]
    assert [k["id"] for k in found] == [m["id"] for m in reversed(made)]
    by_prefix = {"prefix": made[0]["prefix"][:7], "tenant": tenant}
    found = admin.get("/api/keys", params=by_prefix).json()["items"]
    assert made[0]["id"] in [k["id"] for k in found]
    for bad in ("%", "_", "zz", "0123456789"):
        assert admin.get("/api/keys", params={"prefix": bad}).status_code == 422


async def test_use_is_noted_in_batches(
    api: Api, admin: httpx.Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.authenticator import Authenticator

    made = make_key(admin, "jobs:read")
    authenticator = Authenticator(database)
    await authenticator.authenticate(made["key"])
    async with database.transaction() as store:
        found = await store.keys.find(made["prefix"])
    assert found is not None
    assert found[0].last_used_at is None
    await authenticator.note_use()
    async with database.transaction() as store:
        found = await store.keys.find(made["prefix"])
    assert found is not None
    assert found[0].last_used_at is not None


def test_what_admins_do_is_in_the_audit_log(api: Api, admin: httpx.Client) -> None:
    made = make_key(admin, "jobs:read", "models:write", tenant=unique("t"))
    new = admin.post(f"/api/keys/{made['id']}/rotate").json()
    admin.patch(f"/api/keys/{new['id']}", json={"limits": {"max_queued": 3}})
    admin.delete(f"/api/keys/{new['id']}")
    prefix = api.admin_key.split("_")[1]

    def entries(**params: str) -> list[tuple[str, str]]:
        found = admin.get("/api/audit", params=params).json()["items"]
        return [(e["action"], e["key_prefix"]) for e in found]

    assert entries(subject=made["prefix"]) == [("key_rotate", prefix), ("key_create", prefix)]
    assert entries(subject=new["id"]) == [("key_revoke", prefix), ("key_change", prefix)]
    model_id = f"{unique('o')}/m"
    with api.client(made["key"]) as client:
        assert client.post("/api/models", json={"model_id": model_id}).status_code == 201
        # A repeat makes nothing, and no entry.
        assert client.post("/api/models", json={"model_id": model_id}).status_code == 201
        client.patch(f"/api/models/{model_id}", json={"description": "d"})
        assert client.get("/api/audit").status_code == 403
    assert entries(subject=model_id) == [
        ("model_describe", made["prefix"]), ("model_create", made["prefix"])
    ]  # fmt: skip
    page = admin.get("/api/audit", params={"subject": model_id, "limit": 1}).json()
    rest = admin.get("/api/audit", params={"subject": model_id, "cursor": page["next_cursor"]})
    assert [e["action"] for e in rest.json()["items"]] == ["model_create"]
    text = admin.get("/api/audit", params={"limit": 200}).text
    assert made["key"] not in text
    assert new["key"] not in text
