"""Heartbeats in groups: each node hears its own answer, and what changed is never missed."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import sqlalchemy as sa

from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.store.database import Database

from .test_nodes import submit
from .world import Agent, Api, Version, dispatch, load


async def beat(http: httpx.AsyncClient, agent: Agent, **values: Any) -> httpx.Response:
    body = {"boot_id": str(agent.boot_id), "sent_at": datetime.now(UTC).isoformat(), **values}
    headers = {"Authorization": f"Bearer {agent.credential}"}
    return await http.post(f"/api/nodes/{agent.id}/heartbeat", json=body, headers=headers)


async def test_each_of_many_at_a_time_gets_its_own_answer(
    api: Api, admin: httpx.Client, version: Version, database: Database
) -> None:
    agents = [Agent(api) for _ in range(12)]
    for agent in agents:
        agent.register()
    loaded = {agent.id: await load(admin, agent, version) for agent in agents[:6]}
    job = await dispatch(database, submit(admin, version), agents[0], loaded[agents[0].id])
    ref = {"job_id": str(job.id), "attempt": job.attempt}
    agents[11].boot_id = agents[10].boot_id  # an earlier start, as far as its node knows
    gpu = {"index": 0, "memory_used_bytes": 0, "memory_total_bytes": 1, "utilization_ratio": 0}
    said = {agents[9].id: [{**gpu, "lost": "no column \x00 can hold this"}]}
    async with httpx.AsyncClient(base_url=api.url, timeout=20, trust_env=False) as http:
        answers = await asyncio.gather(
            *(
                beat(http, a, running=[ref], gpus=said.get(a.id, [gpu]), assignments=[
                    {"assignment_id": str(loaded[a.id]), "state": "ready"}
                ] if a.id in loaded else [])
                for a in agents for _ in range(3)
            )
        )  # fmt: skip
    for agent, answer in zip([a for a in agents for _ in range(3)], answers, strict=True):
        if agent is agents[9]:
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
        elif agent is agents[11]:
            assert (answer.status_code, answer.json()["code"]) == (409, "stale_boot")
        else:
            found = answer.json()
            ids = [a["assignment_id"] for a in found["assignments"]]
            assert ids == ([str(loaded[agent.id])] if agent.id in loaded else [])
            assert found["fenced"] == ([] if agent is agents[0] else [ref])
            assert found["fence_grace_seconds"] is None
    for agent in agents:
        agent.client.close()


async def test_a_change_of_the_version_or_of_what_is_desired_is_in_the_next_answer(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = str(await load(admin, agent, version))

    def desired() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = agent.report(assignment_id, "ready").json()["assignments"]
        return found

    first = desired()
    assert desired() == desired() == first
    needs = {"resources": {"gpu_memory_bytes": 5}}
    async with database.transaction() as store:
        assert await store.models.update(version.id, frozenset({VersionState.READY}), needs)
    assert [d["resources"]["gpu_memory_bytes"] for d in desired()] == [5]
    admin.delete(f"/api/nodes/{agent.id}/assignments/{assignment_id}")
    assert desired() == []


async def test_a_node_that_flaps_must_be_heard_for_a_while(
    admin: httpx.Client, agent: Agent, database: Database
) -> None:
    async def execute(statement: str) -> None:
        async with database.transaction() as store:
            await store.connection.execute(sa.text(statement), {"id": agent.id})

    def state() -> str:
        assert agent.beat().status_code == 200
        shown: str = admin.get(f"/api/nodes/{agent.id}").json()["state"]
        return shown

    again = "update nodes set state = 'suspect', suspicions = 3, heard_since = null where id = :id"
    await execute(again)
    assert [state(), state()] == ["suspect", "suspect"]
    # The third time it is a probation of twice suspect_seconds.
    await execute("update nodes set heard_since = now() - interval '59 seconds' where id = :id")
    assert state() == "suspect"
    await execute("update nodes set heard_since = now() - interval '61 seconds' where id = :id")
    assert state() == "ready"
    kinds = [e["kind"] for e in admin.get(f"/api/nodes/{agent.id}/events").json()["items"]]
    assert kinds == ["ready", "joined"]


async def test_a_revoked_credential_is_refused_at_once(
    api: Api, agent: Agent, database: Database
) -> None:
    """Also by an api process that has just proven it and was not told."""
    assert agent.beat().status_code == 200
    async with database.transaction() as store:
        await store.keys.revoke_node(agent.id)
        before = await store.nodes.get(agent.id)
    answer = agent.beat()
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    async with database.transaction() as store:
        after = await store.nodes.get(agent.id)
    assert before is not None
    assert after is not None
    assert after.last_heartbeat_at == before.last_heartbeat_at


async def test_what_many_nodes_say_for_the_first_time_is_recorded_for_each(
    api: Api, admin: httpx.Client, version: Version
) -> None:
    agents = [Agent(api) for _ in range(10)]
    asked: dict[Any, str] = {}
    for agent in agents:
        agent.register()
        body = {"model_id": version.model_id, "version_id": version.name}
        made = admin.post(f"/api/nodes/{agent.id}/assign", json=body)
        asked[agent.id] = made.json()["id"]
    states = ["pulling", "ready", "failed", "loading", "ready"] * 2
    async with httpx.AsyncClient(base_url=api.url, timeout=20, trust_env=False) as http:
        answers = await asyncio.gather(
            *(
                beat(http, a, assignments=[{
                    "assignment_id": asked[a.id], "state": state, "slots": 2,
                    "detail": "it is broken" if state == "failed" else None,
                }]) for a, state in zip(agents, states, strict=True)
            )
        )  # fmt: skip
    for agent, state, answer in zip(agents, states, answers, strict=True):
        assert [a["assignment_id"] for a in answer.json()["assignments"]] == [asked[agent.id]]
        (shown,) = admin.get(f"/api/nodes/{agent.id}").json()["assignments"]
        assert (shown["state"], shown["slots"]) == (state, 2)
        assert shown["detail"] == ("it is broken" if state == "failed" else None)
        kinds = [e["kind"] for e in admin.get(f"/api/nodes/{agent.id}/events").json()["items"]]
        told = {"ready": ["assignment_ready"], "failed": ["assignment_failed"]}.get(state, [])
        assert [kind for kind in kinds if kind.startswith("assignment_")] == told
        agent.client.close()
