"""Nodes over HTTP: joining, heartbeats, assignments, and what a new start of the agent does."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.node import NodeState
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect

from .world import Agent, Api, Version, dispatch, load, unique


def submit(admin: httpx.Client, version: Version, **values: Any) -> str:
    body = {"model_id": version.model_id, "input": {"digit": 3}, **values}
    answer = admin.post("/api/jobs", json=body)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["job_id"]
    return job_id


async def orders(api: Api, agent: Agent, count: int) -> list[dict[str, str]]:
    """The first `count` orders in the node's stream, waited for."""
    async with connect(api.settings.redis_url) as redis:
        found: list[dict[str, str]] = []
        last = "0"
        while len(found) < count:
            answer = await redis.xread({keys.node(agent.id): last}, block=3000)
            assert answer, f"only {found} came"
            entries = answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))[0]
            found += [fields for _, fields in entries]
            last = entries[-1][0]
        return found


def test_joining_gives_a_credential_that_is_the_nodes_own(api: Api, admin: httpx.Client) -> None:
    agent = Agent(api)
    joined = agent.register()
    assert joined["credential"].startswith("vyn_")
    assert joined["redis_url"] == api.settings.redis_url
    assert joined["s3"]["bucket_prefix"] == api.s3.bucket_prefix
    shown = admin.get(f"/api/nodes/{agent.id}").json()
    assert (shown["name"], shown["state"]) == (agent.name, "ready")
    assert shown["capabilities"]["cpus"] == 2
    assert agent.beat().json()["assignments"] == []
    # Again by the credential: same node, no new secret.
    again = agent.register(joined["credential"])
    assert (again["node_id"], again["credential"]) == (joined["node_id"], None)
    # Again by the token: same node, and the old credential ends.
    assert agent.register()["node_id"] == joined["node_id"]
    agent.credential = joined["credential"]
    assert agent.beat().status_code == 401
    agent.client.close()


def test_who_may_not_join(api: Api, admin: httpx.Client, agent: Agent) -> None:
    body = {
        "name": unique("n-"), "boot_id": str(uuid7()),
        "capabilities": {"hostname": "h", "cpus": 1, "memory_bytes": 1, "engine": "docker",
                         "agent_version": "0"},
    }  # fmt: skip
    for token, status in (
        ("wrong", 401), ("vyn_00000000_" + "A" * 43, 401), (api.admin_key, 403),
        (agent.credential, 403),
    ):  # fmt: skip
        answer = agent.post("/api/nodes/register", body, token)
        assert answer.status_code == status, (token, answer.text)
    assert admin.get("/api/nodes", params={"limit": 200}).text.count(body["name"]) == 0
    bad = agent.post("/api/nodes/register", {**body, "name": "../etc"}, "a-join-token")
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_input")


def test_a_heartbeat_of_an_earlier_boot_is_stale(agent: Agent) -> None:
    old = agent.boot_id
    agent.register(agent.credential)
    agent.boot_id = old
    answer = agent.beat()
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_boot")


async def test_a_lost_node_must_join_again(agent: Agent, database: Database) -> None:
    async with database.transaction() as store:
        await store.nodes.set_state(agent.id, frozenset({NodeState.READY}), NodeState.LOST)
    assert agent.beat().json()["code"] == "stale_boot"
    agent.register(agent.credential)
    assert agent.beat().status_code == 200


async def test_a_new_start_finds_no_orders_of_an_earlier_one(
    api: Api, admin: httpx.Client, agent: Agent, version: Version
) -> None:
    await load(admin, agent, version)
    assert (await orders(api, agent, 1))[0]["kind"] == "sync"
    async with connect(api.settings.redis_url) as redis:
        left = await redis.pttl(keys.node(agent.id))
        assert 0 < left <= keys.NODE_MS, "a node that is gone would leave its stream for ever"
        agent.register(agent.credential)
        assert await redis.exists(keys.node(agent.id)) == 0


async def test_a_suspect_node_is_ready_again_by_a_heartbeat(
    admin: httpx.Client, agent: Agent, database: Database
) -> None:
    async with database.transaction() as store:
        await store.nodes.set_state(agent.id, frozenset({NodeState.READY}), NodeState.SUSPECT)
    assert agent.beat().status_code == 200
    assert admin.get(f"/api/nodes/{agent.id}").json()["state"] == "ready"


async def test_an_assignment_from_asking_to_removal(
    api: Api, admin: httpx.Client, agent: Agent, version: Version
) -> None:
    asked = admin.post(
        f"/api/nodes/{agent.id}/assign",
        json={"model_id": version.model_id, "version_id": version.name,
              "weights_uri": "s3://somewhere/weights"},
    )  # fmt: skip
    assert (asked.status_code, asked.json()["state"]) == (202, "requested")
    assignment_id = asked.json()["id"]
    assert (await orders(api, agent, 1))[0]["kind"] == "sync"
    (desired,) = agent.beat().json()["assignments"]
    assert desired["assignment_id"] == assignment_id
    assert desired["runner_image"] == "venv://sha256:" + "0" * 64
    for state in ("pulling", "loading", "ready"):
        assert len(agent.report(assignment_id, state, slots=2).json()["assignments"]) == 1
        (shown,) = admin.get(f"/api/nodes/{agent.id}").json()["assignments"]
        assert (shown["state"], shown["slots"]) == (state, 2)
    # The same version asked for again is the same assignment.
    again = admin.post(
        f"/api/nodes/{agent.id}/assign",
        json={"model_id": version.model_id, "version_id": str(version.id)},
    )
    assert (again.json()["id"], again.json()["state"]) == (assignment_id, "ready")
    path = f"/api/nodes/{agent.id}/assignments/{assignment_id}"
    assert admin.delete(path).json()["state"] == "removing"
    assert admin.delete(path).status_code == 202
    # A report that crossed with the removal brings nothing back.
    assert agent.report(assignment_id, "ready").json()["assignments"] == []
    assert agent.report(assignment_id, "removed").status_code == 200
    assert admin.get(f"/api/nodes/{agent.id}").json()["assignments"] == []
    history = admin.get(f"/api/nodes/{agent.id}/events").json()["items"]
    assert [e["kind"] for e in history] == [
        "assignment_removed", "unassigned", "assignment_ready", "assigned", "joined",
    ]  # fmt: skip


async def test_a_removal_that_the_agent_never_heard_of_ends(
    admin: httpx.Client, agent: Agent, version: Version
) -> None:
    assignment_id = await load(admin, agent, version)
    admin.delete(f"/api/nodes/{agent.id}/assignments/{assignment_id}")
    agent.register(agent.credential)
    assert agent.beat().json()["assignments"] == []
    assert admin.get(f"/api/nodes/{agent.id}").json()["assignments"] == []


async def test_what_cannot_be_assigned(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    path = f"/api/nodes/{agent.id}/assign"

    def code(**values: Any) -> tuple[int, str]:
        body = {"model_id": version.model_id, "version_id": version.name, **values}
        answer = admin.post(path, json=body)
        return answer.status_code, answer.json().get("code", "")

    assert code(version_id="v9") == (404, "not_found")
    assert code(version_id=str(uuid7())) == (404, "not_found")
    assert code(model_id="test/other") == (404, "not_found")
    assert code(model_id="../x") == (422, "invalid_model_id")
    assert code(weights_uri="s3://other/weights") == (422, "invalid_weights_uri")
    async with database.transaction() as store:
        await store.connection.exec_driver_sql(
            "update model_versions set resources = %s where id = %s",
            (json.dumps({"gpu_memory_bytes": 1 << 34}), version.id),
        )
    assert code() == (409, "conflict")
    admin.patch(f"/api/models/{version.model_id}/versions/v1", json={"state": "retired"})
    assert code() == (409, "conflict")
    answer = admin.post(f"/api/nodes/{uuid7()}/assign", json={"model_id": "a/b", "version_id": "v"})
    assert answer.status_code == 404
    assert admin.get(f"/api/nodes/{agent.id}").json()["assignments"] == []


async def test_a_new_boot_charges_its_lost_attempts_and_loads_again(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job_id = submit(admin, version)
    job = await dispatch(database, job_id, agent, assignment_id)
    agent.register(agent.credential)
    shown = admin.get(f"/api/jobs/{job_id}").json()
    assert (shown["status"], shown["attempts"][0]["outcome"]) == ("queued", "lost")
    (assignment,) = admin.get(f"/api/nodes/{agent.id}").json()["assignments"]
    assert assignment["state"] == "requested"
    stale = agent.complete(job.id, job.attempt, "succeeded")
    assert (stale.status_code, stale.json()["code"]) == (409, "stale_attempt")


async def test_a_node_that_leaves_hands_its_work_back_uncharged(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job_id = submit(admin, version)
    await dispatch(database, job_id, agent, assignment_id)
    assert agent.beat(leaving=True).status_code == 200
    assert admin.get(f"/api/nodes/{agent.id}").json()["state"] == "joining"
    shown = admin.get(f"/api/jobs/{job_id}").json()
    assert (shown["status"], shown["attempts"][0]["outcome"]) == ("queued", "handed_back")
    async with database.transaction() as store:
        job = await store.jobs.get(UUID(job_id), None)
    assert job is not None
    assert job.handed_back == 1
    kinds = [e["kind"] for e in admin.get(f"/api/nodes/{agent.id}/events").json()["items"]]
    assert kinds[0] == "left"


async def test_a_heartbeat_renews_its_leases_and_fences_what_is_not_its_own(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job = await dispatch(database, submit(admin, version), agent, assignment_id)
    refs = [
        {"job_id": str(job.id), "attempt": job.attempt},
        {"job_id": str(job.id), "attempt": job.attempt + 1},
        {"job_id": str(uuid7()), "attempt": 1},
    ]
    answer = agent.beat(running=refs).json()
    assert answer["fenced"] == refs[1:]
    async with database.transaction() as store:
        renewed = await store.jobs.get(job.id, None)
    assert renewed is not None
    assert renewed.lease_expires_at is not None
    assert renewed.lease_expires_at != job.lease_expires_at


def test_metrics_are_those_of_the_last_heartbeat(admin: httpx.Client, agent: Agent) -> None:
    gpu = {"index": 0, "memory_used_bytes": 5, "memory_total_bytes": 10, "utilization_ratio": 0.5,
           "temperature_celsius": 41.0, "lost": None}  # fmt: skip
    agent.beat(gpus=[gpu], memory_available_bytes=77)
    shown = admin.get(f"/api/nodes/{agent.id}/metrics").json()
    assert shown["gpus"] == [gpu]
    assert shown["memory_available_bytes"] == 77
    age = datetime.now(UTC) - datetime.fromisoformat(shown["received_at"])
    assert abs(age.total_seconds()) < 5
    assert f'vyvo_node_up{{node="{agent.name}"}}' in _fresh_metrics(admin)


def test_a_lost_gpu_is_told_once_and_takes_no_version_until_it_is_back(
    admin: httpx.Client, agent: Agent, version: Version
) -> None:
    sizes = {0: 10 << 30, 1: 80 << 30}
    agent.register(gpus=[
        {"index": i, "uuid": f"GPU-{i}", "name": "H", "memory_bytes": size}
        for i, size in sizes.items()
    ])  # fmt: skip

    def reading(index: int, lost: str | None = None) -> dict[str, Any]:
        return {"index": index, "memory_used_bytes": 0, "utilization_ratio": 0,
                "memory_total_bytes": 0 if lost else sizes[index], "lost": lost}  # fmt: skip

    def history() -> list[tuple[str, int, str | None]]:
        return [
            (e["kind"], e["detail"]["index"], e["detail"]["detail"])
            for e in admin.get(f"/api/nodes/{agent.id}/events").json()["items"]
            if e["kind"].startswith("gpu_")
        ]

    def lost() -> list[str | None]:
        shown = admin.get(f"/api/nodes/{agent.id}").json()
        return [gpu["lost"] for gpu in shown["capabilities"]["gpus"]]

    large = {
        "modality": "image", "runner_image": "noop://large",
        "resources": {"gpu_memory_bytes": 40 << 30},
    }  # fmt: skip
    made = admin.put(f"/api/models/{version.model_id}/versions/large", json=large)
    assert made.is_success, made.text
    ask = {"model_id": version.model_id, "version_id": "large"}
    agent.beat(gpus=[reading(0), reading(1)])
    assert history() == []
    for _ in range(2):
        agent.beat(gpus=[reading(0), reading(1, "GPU is lost")])
    assert history() == [("gpu_lost", 1, "GPU is lost")]
    assert lost() == [None, "GPU is lost"]
    refused = admin.post(f"/api/nodes/{agent.id}/assign", json=ask)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    for _ in range(2):
        agent.beat(gpus=[reading(0), reading(1)])
    assert history() == [("gpu_back", 1, None), ("gpu_lost", 1, "GPU is lost")]
    assert lost() == [None, None]
    assert admin.post(f"/api/nodes/{agent.id}/assign", json=ask).status_code == 202


def _fresh_metrics(admin: httpx.Client) -> str:
    import time

    time.sleep(2.1)
    return admin.get("/metrics").text


def test_cordon_drain_and_uncordon(admin: httpx.Client, agent: Agent) -> None:
    def flags(what: str) -> tuple[bool, bool, bool]:
        shown = admin.post(f"/api/nodes/{agent.id}/{what}").json()
        return shown["cordoned"], shown["draining"], shown["schedulable"]

    assert flags("cordon") == (True, False, False)
    assert flags("drain") == (True, True, False)
    assert flags("uncordon") == (False, False, True)
    assert admin.post(f"/api/nodes/{uuid7()}/cordon").status_code == 404
