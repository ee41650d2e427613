"""What waits, over REST, and the weights by which tenants share."""

import httpx

from vyvo_dagster.store.database import Database

from .world import Agent, Api, Version, dispatch, load, unique


def key(admin: httpx.Client, tenant: str, *scopes: str) -> str:
    body = {"name": tenant, "tenant": tenant, "scopes": scopes or ["jobs:write"]}
    return str(admin.post("/api/keys", json=body).json()["key"])


async def test_the_queue_by_version_class_and_tenant(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    tenant = unique("t")
    job = {"model_id": version.model_id, "input": {"digit": 1}}
    with api.client(key(admin, tenant)) as client:
        batch = [{**job, "priority": "batch"}] * 3
        assert client.post("/api/jobs/batch", json={"jobs": batch}).status_code == 202
        assignment_id = await load(admin, agent, version)
        running = admin.post("/api/jobs", json=job).json()["job_id"]
        await dispatch(database, running, agent, assignment_id)

        own = client.get("/api/queue").json()
        assert own["truncated"] is False
        (item,) = own["items"]
        assert item.pop("oldest_seconds") >= 0
        assert item == {
            "model_id": version.model_id, "version": "v1", "priority": "batch", "tenant": tenant,
            "depth": 3, "in_flight": 0, "weight": 1.0,
        }  # fmt: skip
        assert client.get("/api/queue/weights").status_code == 403
    params = {"model_id": version.model_id}
    seen = admin.get("/api/queue", params=params).json()["items"]
    assert [(i["tenant"], i["depth"], i["in_flight"]) for i in seen] == [
        (tenant, 3, 0), ("admin", 0, 1),
    ]  # fmt: skip
    assert seen[1]["oldest_seconds"] is None
    cut = admin.get("/api/queue", params={**params, "limit": 1}).json()
    assert (len(cut["items"]), cut["truncated"]) == (1, True)
    agent.complete(running, 1, "succeeded")
    answer = admin.get("/api/queue", params={"model_id": "x"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_model_id")


def test_weights_are_set_shown_and_forgotten(
    api: Api, admin: httpx.Client, version: Version
) -> None:
    tenant, path = unique("t"), "/api/queue/weights"

    def listed() -> list[tuple[str | None, float]]:
        items = admin.get(path).json()["items"]
        return [(i["model_id"], i["weight"]) for i in items if i["tenant"] == tenant]

    def shown() -> float:
        items = admin.get("/api/queue", params={"model_id": version.model_id}).json()["items"]
        return float(next(i["weight"] for i in items if i["tenant"] == tenant))

    with api.client(key(admin, tenant)) as client:
        client.post("/api/jobs", json={"model_id": version.model_id, "input": {"digit": 1}})
        assert client.put(path, json={"tenant": tenant, "weight": 9}).status_code == 403
    for weight in (2, 2.5):
        answer = admin.put(path, json={"tenant": tenant, "weight": weight})
        assert (answer.status_code, answer.json()["weight"]) == (200, weight)
    assert shown() == 2.5
    admin.put(path, json={"tenant": tenant, "model_id": version.model_id, "weight": 8})
    assert listed() == [(version.model_id, 8), (None, 2.5)]
    assert shown() == 8
    of_model = {"tenant": tenant, "model_id": version.model_id}
    assert admin.delete(path, params=of_model).status_code == 204
    assert admin.delete(path, params=of_model).status_code == 404
    assert shown() == 2.5
    assert admin.delete(path, params={"tenant": tenant}).status_code == 204
    assert (listed(), shown()) == ([], 1)

    for wrong in (
        {"weight": 0}, {"weight": -1}, {"weight": 1001}, {"weight": "much"}, {"weight": True},
        {"tenant": "a:b", "weight": 1}, {"model_id": "x", "weight": 1}, {"wait": 1},
    ):  # fmt: skip
        answer = admin.put(path, json={"tenant": tenant, **wrong})
        assert answer.status_code == 422, wrong
    nan = '{"tenant": "t", "weight": NaN}'
    json = {"content-type": "application/json"}
    assert admin.put(path, content=nan, headers=json).status_code == 422
    missing = admin.put(path, json={"tenant": tenant, "model_id": "no/such", "weight": 1})
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


def test_a_place_follows_from_the_shares_of_the_tenants(
    api: Api, admin: httpx.Client, version: Version
) -> None:
    body = {"model_id": version.model_id, "input": {"digit": 1}}
    key = {"name": "b", "tenant": (tenant := unique("t")), "scopes": ["jobs:read", "jobs:write"]}
    token = admin.post("/api/keys", json=key).json()["key"]
    flood = admin.post("/api/jobs/batch", json={"jobs": [body] * 20}).json()["jobs"]
    assert [j["queue_position"] for j in flood] == list(range(1, 21))

    def submit(client: httpx.Client) -> tuple[str, int]:
        made = client.post("/api/jobs", json=body).json()
        return made["job_id"], made["queue_position"]

    with api.client(token) as other:
        first, place = submit(other)
        assert place == 2  # the flood's first, and not all of it
        assert submit(other)[1] == 4
        # The flood's next waits for both of the other tenant as well.
        assert submit(admin)[1] == 23
        assert other.get(f"/api/jobs/{first}").json()["queue_position"] == 2
        assert admin.get(f"/api/jobs/{flood[19]['job_id']}").json()["queue_position"] == 22
        weight = {"tenant": tenant, "model_id": version.model_id, "weight": 2}
        assert admin.put("/api/queue/weights", json=weight).status_code == 200
        # The third stands at 1 on its tenant's clock now: two of the flood's go before it.
        assert submit(other)[1] == 5
        params = {"tenant": tenant, "model_id": version.model_id}
        assert admin.delete("/api/queue/weights", params=params).status_code == 204
        assert submit(other)[1] == 8
