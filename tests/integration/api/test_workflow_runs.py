"""Runs over REST, with an engine that the test plays."""

import asyncio
import copy
import json
import threading
from datetime import timedelta
from uuid import UUID

import httpx
import pytest

from vyvo_dagster.domain.workflow.state import StepState
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams.client import connect

from .workflow_world import OK, Engine, definition, events_of, pushed, started
from .world import Api, Version


@pytest.fixture
def engine(api: Api, database: Database) -> Engine:
    return Engine(api, database)


async def test_a_run_shows_its_steps_timings_and_outputs(
    admin: httpx.Client, version: Version, engine: Engine
) -> None:
    document = definition(version)
    name = pushed(admin, document)["name"]
    run_id = started(admin, name, inputs={"digits": [4, 5, 6]}, priority="batch")
    shown = admin.get(f"/api/workflow-runs/{run_id}").json()
    assert (shown["status"], shown["trigger"], shown["priority"]) == ("queued", "api", "batch")
    assert [s["status"] for s in shown["steps"]] == ["pending", "pending"]
    async with engine.database.transaction() as store:
        await store.workflow_runs.claim(engine.id, timedelta(seconds=60), 1000)
    await engine.turn(run_id)
    await engine.turn(run_id, OK)
    shown = admin.get(f"/api/workflow-runs/{run_id}").json()
    assert (shown["status"], shown["outputs"]) == ("succeeded", {"count": "3"})
    assert shown["seconds"] >= 0
    steps = {s["key"]: s for s in shown["steps"]}
    assert list(steps) == ["make", "make[0]", "make[1]", "make[2]", "count"]
    assert steps["make[1]"]["input"] == {"digit": 5}
    (artifact,) = steps["make[1]"]["artifacts"]
    assert artifact["presigned_url"].startswith("http")
    assert steps["make"]["artifacts"] == []
    assert steps["make[1]"]["timing"]["offset"] >= 0
    listed = admin.get("/api/workflow-runs", params={"workflow": name, "status": "succeeded"})
    assert [r["run_id"] for r in listed.json()["items"]] == [str(run_id)]
    none = admin.get("/api/workflow-runs", params={"workflow": name, "trigger": "cron"})
    assert none.json()["items"] == []


def test_a_key_starts_one_run(admin: httpx.Client, version: Version) -> None:
    document = definition(version)
    path = f"/api/workflows/{pushed(admin, document)['name']}/runs"
    headers = {"Idempotency-Key": "k1"}
    first = admin.post(path, json={}, headers=headers).json()
    again = admin.post(path, json={"inputs": {"digits": [1, 2]}}, headers=headers)
    assert again.json() == first
    other = admin.post(path, json={"inputs": {"digits": [3]}}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    changed = copy.deepcopy(document)
    del changed["triggers"]
    changed["inputs"] = {"digits": {"type": "array"}, "more": {"type": "string"}}
    pushed(admin, changed)
    assert admin.post(path, json={}, headers=headers).json()["run_id"] == first["run_id"]
    bad = admin.post(path, json={"inputs": {"digits": 3}})
    assert bad.status_code == 422
    assert bad.json()["errors"] == [
        {"path": "$.digits", "message": "must be array, not integer"},
        {"path": "$", "message": "'more' is required"},
    ]
    old = admin.post(path, json={"version": 1})
    assert (old.status_code, old.json()["version"]) == (202, 1)


async def test_a_run_is_canceled_and_retried(
    admin: httpx.Client, version: Version, engine: Engine
) -> None:
    name = pushed(admin, definition(version))["name"]
    run_id = started(admin, name)
    rows = await engine.turn(run_id)
    assert rows["make[0]"].state is StepState.SUBMITTED
    path = f"/api/workflow-runs/{run_id}"
    assert admin.post(f"{path}/retry").status_code == 409
    canceled = admin.post(f"{path}/cancel")
    assert (canceled.status_code, canceled.json()["cancel_requested"]) == (202, True)
    assert admin.post(f"{path}/cancel").status_code == 202
    await engine.turn(run_id, OK)
    assert admin.get(path).json()["status"] == "canceled"
    assert admin.post(f"{path}/cancel").status_code == 202
    again = admin.post(f"{path}/retry", headers={"Idempotency-Key": "r"})
    assert again.status_code == 202, again.text
    assert (again.json()["retry_of"], again.json()["trigger"]) == (str(run_id), "retry")
    repeated = admin.post(f"{path}/retry", headers={"Idempotency-Key": "r"})
    assert repeated.json()["run_id"] == again.json()["run_id"]
    assert admin.post(f"{path}/retry").json()["detail"] == "a retry of the run is under way"
    retried = UUID(again.json()["run_id"])
    rows = await engine.turn(retried)
    assert (rows["make[0]"].state, rows["count"].state) == (StepState.SUCCEEDED,) * 2
    done = admin.get(f"/api/workflow-runs/{retried}").json()
    assert (done["status"], done["outputs"]) == ("succeeded", {"count": "2"})
    assert admin.post(f"/api/workflow-runs/{retried}/retry").status_code == 409
    assert admin.post(f"/api/workflow-runs/{retried}/cancel").status_code == 409


async def test_events_are_followed_and_replayed(
    admin: httpx.Client, api: Api, version: Version, engine: Engine
) -> None:
    name = pushed(admin, definition(version))["name"]
    run_id = started(admin, name, inputs={"digits": [1]})
    with api.client() as second:
        following = asyncio.create_task(asyncio.to_thread(events_of, second, run_id))
        await engine.turn(run_id)
        await engine.turn(run_id, OK)
        async with asyncio.timeout(30):
            live = await following
    kinds = [kind for _, kind, _ in live]
    assert kinds[0] == "run_queued"
    assert kinds[-1] == "run_completed"
    states = [(d["key"], d["status"]) for _, kind, d in live if kind == "step"]
    assert states == [
        ("make", "running"), ("make[0]", "submitted"), ("make[0]", "succeeded"),
        ("make", "succeeded"), ("count", "succeeded"),
    ]  # fmt: skip
    (made,) = [d for _, k, d in live if k == "step" and d["key"] == "make[0]" and d["artifacts"]]
    assert made["artifacts"][0]["presigned_url"].startswith("http")
    assert live[-1][2]["outputs"] == {"count": "1"}
    assert [e[:2] for e in events_of(admin, run_id)] == [e[:2] for e in live]
    assert [e[1] for e in events_of(admin, run_id, live[-2][0])] == ["run_completed"]
    async with connect(api.settings.redis_url) as redis:
        await redis.delete(f"vyvo:events:{run_id}")
    rebuilt = events_of(admin, run_id)
    assert sorted(d["key"] for _, k, d in rebuilt if k == "step") == ["count", "make", "make[0]"]
    assert rebuilt[-1][1:] == ("run_completed", live[-1][2])


async def test_all_events_carry_those_of_runs(
    admin: httpx.Client, api: Api, version: Version, engine: Engine
) -> None:
    name = pushed(admin, definition(version))["name"]
    opened, seen = threading.Event(), list[str]()

    def listen() -> None:
        with (
            api.client() as client,
            client.stream(
                "GET", "/api/events", params={"kind": ["step", "run_completed"]}
            ) as answer,
        ):
            for line in answer.iter_lines():
                opened.set()
                if line.startswith("data: "):
                    seen.append(line.removeprefix("data: "))
                if line == "event: run_completed":
                    return

    listening = asyncio.create_task(asyncio.to_thread(listen))
    assert await asyncio.to_thread(opened.wait, 10)
    await asyncio.sleep(0.2)
    run_id = started(admin, name, inputs={"digits": []})
    async with asyncio.timeout(30):
        while not listening.done():
            if not seen:
                await engine.turn(run_id)
            await asyncio.sleep(0.05)
        await listening
    assert {json.loads(text)["run_id"] for text in seen} == {str(run_id)}
