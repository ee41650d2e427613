"""Definitions over REST: pushed, checked, read, and by whom."""

import httpx

from vyvo_dagster.store.database import Database

from .workflow_world import definition, key_with, pushed, started
from .world import Api, Version, ready_version, unique


def test_a_definition_is_pushed_versioned_and_read(admin: httpx.Client, version: Version) -> None:
    document = definition(version)
    name = document["name"]
    first = pushed(admin, document)
    assert (first["version"], first["created"]) == (1, True)
    assert pushed(admin, document)["created"] is False
    changed = {**document, "description": "more"}
    answer = admin.put(f"/api/workflows/{name}", json=changed)
    assert answer.json()["version"] == 2
    shown = admin.get(f"/api/workflows/{name}").json()
    assert (shown["latest_version"], shown["description"]) == (2, "more")
    assert shown["definition"] == changed
    assert [(s["name"], s["needs"]) for s in shown["steps"]] == [("make", []), ("count", ["make"])]
    (trigger,) = shown["triggers"]
    assert trigger["next_at"] is not None
    page = admin.get(f"/api/workflows/{name}/versions", params={"limit": 1}).json()
    assert [v["version"] for v in page["items"]] == [2]
    rest = admin.get(f"/api/workflows/{name}/versions", params={"cursor": page["next_cursor"]})
    assert [v["definition"] for v in rest.json()["items"]] == [document]
    assert admin.get(f"/api/workflows/{name}/versions/1").json()["sha256"] == first["sha256"]
    assert admin.get(f"/api/workflows/{name}/versions/9").status_code == 404
    listed = admin.get("/api/workflows").json()["items"]
    assert name in [w["name"] for w in listed]
    paused = admin.patch(f"/api/workflows/{name}", json={"paused": True}).json()
    assert paused["paused"] is True


def test_faults_are_answered_with_their_step_and_path(
    admin: httpx.Client, version: Version
) -> None:
    document = definition(version)
    document["steps"][0]["input"] = {"digt": "x"}
    document["steps"][1]["needs"] = ["nothing"]
    answer = admin.post("/api/workflows", json=document)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_workflow"
    found = [(p["step"], p["code"], p["path"]) for p in problem["problems"]]
    assert found == [
        ("make", "type", "$.steps[0].input.digt"),
        ("make", "missing_field", "$.steps[0].input"),
        ("count", "unknown_step", "$.steps[1].needs[0]"),
    ]
    checked = admin.post("/api/workflows/validate", json=document).json()
    assert checked == {"valid": False, "problems": problem["problems"], "steps": []}
    assert admin.get(f"/api/workflows/{document['name']}").status_code == 404
    other = admin.put("/api/workflows/other", json=definition(version))
    assert (other.status_code, other.json()["code"]) == (422, "invalid_input")
    for text in ('{"name": NaN}', '{"name": "\\ud800"}', '{"steps": []}', "[]", "3", "{"):
        bad = admin.post(
            "/api/workflows", content=text, headers={"Content-Type": "application/json"}
        )
        assert bad.status_code in {400, 422}, text


def test_models_are_looked_up_in_the_registry(admin: httpx.Client, version: Version) -> None:
    document = definition(version)
    for named, message in (
        ("test/none", "test/none is not registered"),
        (f"{version.model_id}@v9", f"{version.model_id}@v9 is not registered"),
    ):
        document["steps"][0]["model"] = named
        checked = admin.post("/api/workflows/validate", json=document).json()
        assert [p["message"] for p in checked["problems"]] == [message]
    document["steps"][0]["model"] = f"{version.model_id}@v1"
    assert admin.post("/api/workflows/validate", json=document).json()["valid"] is True


async def test_tenants_and_scopes(admin: httpx.Client, api: Api, database: Database) -> None:
    version = await ready_version(database)
    document = definition(version, unique("w-"))
    tenant = unique("t")
    with (
        key_with(admin, api, "workflows:read", tenant=tenant) as reads,
        key_with(admin, api, "workflows:write", tenant=tenant) as writes,
        key_with(admin, api, "workflows:run", tenant=tenant) as runs,
        key_with(admin, api, "workflows:write", "workflows:run") as other,
        key_with(admin, api, "jobs:read") as none,
    ):
        name = document["name"]
        for client, expected in ((reads, 403), (runs, 403), (none, 403), (writes, 201)):
            assert client.post("/api/workflows", json=document).status_code == expected
        path = f"/api/workflows/{name}"
        for client, expected in (
            (reads, 200),
            (runs, 200),
            (writes, 200),
            (other, 404),
            (none, 403),
        ):
            assert client.get(path).status_code == expected
        for client, expected in ((reads, 403), (writes, 403), (other, 404), (runs, 202)):
            assert client.post(f"{path}/runs", json={}).status_code == expected
        assert other.get(path, params={"tenant": tenant}).status_code == 403
        assert admin.get(path).status_code == 404
        assert admin.get(path, params={"tenant": tenant}).json()["tenant"] == tenant
        run_id = started(runs, name)
        seen = f"/api/workflow-runs/{run_id}"
        for client, expected in ((reads, 200), (admin, 200), (other, 404)):
            assert client.get(seen).status_code == expected
        assert other.get(f"{seen}/events").status_code == 404
        assert other.post(f"{seen}/cancel").status_code == 404
        assert other.post(f"{seen}/retry").status_code == 404
        assert other.get("/api/workflow-runs").json()["items"] == []
        assert other.get("/api/workflows").json()["items"] == []
        pushed(other, document)
        assert len(admin.get("/api/workflows", params={"limit": 200}).json()["items"]) >= 2
