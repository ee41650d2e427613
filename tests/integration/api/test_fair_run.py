"""Three tenants weighing 1, 2 and 4 on real servers: each has its share while all of them wait."""

import asyncio
import json
from collections import Counter

import httpx

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.dispatch.main import orchestrate
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect
from vyvo_dagster.streams.entries import acknowledge, read_new

from .test_queue import key
from .world import Agent, Api, Version, unique

WEIGHTS = {unique("one-"): 1, unique("two-"): 2, unique("four-"): 4}
JOBS = 640
COUNTED = 1050
SLOTS = 16


async def serve(api: Api, agent: Agent, tenants: dict[str, str], order: list[str]) -> None:
    """An agent whose runner does nothing: it reads orders, and reports their ends in batches."""
    headers = {"Authorization": f"Bearer {agent.credential}"}
    async with (
        connect(api.settings.redis_url) as redis,
        httpx.AsyncClient(base_url=api.url, headers=headers, trust_env=False) as client,
    ):
        while True:
            entries = await read_new(redis, keys.GROUP_AGENT, "a", keys.node(agent.id), SLOTS)
            await acknowledge(redis, keys.GROUP_AGENT, entries)
            runs = [json.loads(e.fields["body"]) for e in entries if e.fields["kind"] == "run"]
            order += [tenants[run["job_id"]] for run in runs]
            if not runs:
                await asyncio.sleep(0.002)
                continue
            items = [
                {"job_id": r["job_id"],
                 "completion": {"attempt": r["attempt"], "status": "succeeded"}}
                for r in runs
            ]  # fmt: skip
            path = f"/api/nodes/{agent.id}/reports"
            (await client.post(path, json={"items": items})).raise_for_status()


async def test_shares_are_as_the_weights_while_all_wait(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    tenants: dict[str, str] = {}
    for tenant, weight in WEIGHTS.items():
        answer = admin.put("/api/queue/weights", json={"tenant": tenant, "weight": weight})
        assert answer.status_code == 200
        job = {"model_id": version.model_id, "input": {"digit": 1}}
        with api.client(key(admin, tenant)) as client:
            for _ in range(JOBS // 80):
                answer = client.post("/api/jobs/batch", json={"jobs": [job] * 80})
                assert answer.status_code == 202, answer.text
                tenants |= {j["job_id"]: tenant for j in answer.json()["jobs"]}
    assigned = admin.post(
        f"/api/nodes/{agent.id}/assign",
        json={"model_id": version.model_id, "version_id": str(version.id)},
    )
    assert agent.report(assigned.json()["id"], "ready", slots=SLOTS).status_code == 200
    order: list[str] = []
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(orchestrate(api.settings, stop)),
        asyncio.create_task(serve(api, agent, tenants, order)),
    ]
    try:
        async with asyncio.timeout(60):
            while len(order) < len(tenants):
                assert not any(task.done() for task in tasks)
                await asyncio.sleep(0.02)
    finally:
        stop.set()
        await asyncio.wait({tasks[0]}, timeout=5)
        await cancel_all(tasks)
    served = Counter(order[:COUNTED])
    assert served[max(served, key=served.__getitem__)] < JOBS, "one of them waited no more"
    for tenant, weight in WEIGHTS.items():
        due = COUNTED * weight / sum(WEIGHTS.values())
        assert abs(served[tenant] - due) <= 0.05 * due, served
        admin.delete("/api/queue/weights", params={"tenant": tenant})
