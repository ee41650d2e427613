"""Dead letters, and jobs that are queued again after their end."""

import asyncio
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from vyvo_dagster.client import Client
from vyvo_dagster.dispatch.requeue import requeue_lost
from vyvo_dagster.store.attempts import LOST, Gone
from vyvo_dagster.store.database import Database

from .test_auth import make_key
from .test_job_events import follow
from .test_nodes import submit
from .world import Agent, Api, Version, dispatch, load


async def lose(database: Database, admin: httpx.Client, agent: Agent, version: Version) -> str:
    """A job whose node was lost in each of its attempts."""
    assignment_id = await load(admin, agent, version)
    job_id = submit(admin, version)
    for _ in range(3):
        job = await dispatch(database, job_id, agent, assignment_id)
        async with database.transaction() as store:
            await requeue_lost(store, job, Gone(LOST), charged=True)
    return job_id


def letters(admin: httpx.Client, **params: Any) -> list[dict[str, Any]]:
    return admin.get("/api/dead-letters", params=params).json()["items"]


async def test_a_lost_job_is_a_dead_letter_until_it_is_queued_again(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    job_id = await lose(database, admin, agent, version)
    (letter,) = letters(admin, model_id=version.model_id)
    assert (letter["id"], letter["kind"], letter["reason"]) == (job_id, "job", "node_lost")
    assert (letter["attempts"], letter["last_node_id"]) == (3, str(agent.id))

    answer = admin.post(f"/api/jobs/{job_id}/requeue", json={"priority": "interactive"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["queue_position"] == 1
    assert letters(admin, model_id=version.model_id) == []
    job = admin.get(f"/api/jobs/{job_id}").json()
    assert (job["status"], job["priority"], job["error"]) == ("queued", "interactive", None)
    assert (job["attempt"], job["max_attempts"]) == (3, 6)
    again = admin.post(f"/api/jobs/{job_id}/requeue")
    assert (again.status_code, again.json()["code"]) == (409, "illegal_transition")


async def test_a_failed_prediction_is_no_dead_letter_and_can_be_queued_again(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job = await dispatch(database, submit(admin, version), agent, assignment_id)
    bucket = f"{agent.api.s3.bucket_prefix}image"

    def artifact(name: str) -> dict[str, Any]:
        return {"type": "image", "url": f"s3://{bucket}/{job.id}/{name}", "size_bytes": 4,
                "mime_type": "image/png"}  # fmt: skip

    error = {"code": "prediction_failed", "message": "no"}
    agent.complete(job.id, 1, "failed", error=error, artifacts=[artifact("half.png")])
    assert letters(admin, model_id=version.model_id) == []
    admin.post(f"/api/jobs/{job.id}/requeue")
    assert admin.get(f"/api/jobs/{job.id}").json()["artifacts"] == []

    late = agent.complete(job.id, 1, "succeeded")
    assert (late.status_code, late.json()["code"]) == (409, "stale_attempt")
    second = await dispatch(database, str(job.id), agent, assignment_id)
    assert second.attempt == 2
    done = agent.complete(job.id, 2, "succeeded", artifacts=[artifact("whole.png")])
    assert done.status_code == 200, done.text
    shown = admin.get(f"/api/jobs/{job.id}").json()
    assert shown["status"] == "succeeded"
    assert [a["url"] for a in shown["artifacts"]] == [artifact("whole.png")["url"]]
    assert [a["outcome"] for a in shown["attempts"]] == ["failed", "succeeded"]

    events = follow(admin, job.id)
    assert [e[1] for e in events] == ["queued", "artifact", "requeued", "artifact", "completed"]
    assert events[-1][2]["status"] == "succeeded"
    refused = admin.post(f"/api/jobs/{job.id}/requeue")
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_transition")


@pytest.mark.parametrize("ends", ["canceled", "expired"])
async def test_a_follower_of_a_second_life_is_not_told_the_end_of_the_first(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database, ends: str
) -> None:
    job_id = submit(admin, version)
    if ends == "canceled":
        admin.post(f"/api/jobs/{job_id}/cancel")
    else:
        async with database.transaction() as store:
            late = "update jobs set expires_at = now() - interval '1 s' where id = :id"
            await store.connection.execute(sa.text(late), {"id": job_id})
            assert job_id in [str(job.id) for job in await store.jobs.expire(500)]
    assert [e[1] for e in follow(admin, job_id)] == ["queued", "completed"]
    assert admin.post(f"/api/jobs/{job_id}/requeue").status_code == 202
    assert admin.get(f"/api/jobs/{job_id}").json()["cancel_requested"] is False

    def listen() -> list[tuple[str, Any]]:
        with Client(api.url, api.admin_key) as client:
            return [(e.kind, e.data.get("status")) for e in client.job_events(job_id)]

    listening = asyncio.create_task(asyncio.to_thread(listen))
    await asyncio.sleep(0.5)
    job = await dispatch(database, job_id, agent, await load(admin, agent, version))
    agent.complete(job.id, job.attempt, "succeeded")
    async with asyncio.timeout(30):
        told = await listening
    assert [kind for kind, _ in told].count("completed") == 1
    assert told[-1] == ("completed", "succeeded")
    assert ("requeued", "queued") in told


def test_a_requeue_that_is_sent_twice_is_done_once(admin: httpx.Client, version: Version) -> None:
    job_id = submit(admin, version)
    admin.post(f"/api/jobs/{job_id}/cancel")
    headers = {"Idempotency-Key": f"again-{job_id}"}
    first = admin.post(f"/api/jobs/{job_id}/requeue", headers=headers)
    second = admin.post(f"/api/jobs/{job_id}/requeue", headers=headers)
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert first.status_code == 202


def test_what_cannot_be_queued_again(admin: httpx.Client, version: Version) -> None:
    job_id = submit(admin, version)
    waits = admin.post(f"/api/jobs/{job_id}/requeue")
    assert (waits.status_code, waits.json()["code"]) == (409, "illegal_transition")
    assert "is queued" in waits.json()["detail"]
    assert admin.post(f"/api/jobs/{uuid7()}/requeue").status_code == 404
    wrong = admin.post(f"/api/jobs/{job_id}/requeue", json={"ttl": 5})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_input")
    admin.post(f"/api/jobs/{job_id}/cancel")
    path = f"/api/models/{version.model_id}/versions/{version.name}"
    assert admin.patch(path, json={"state": "retired"}).status_code == 200
    retired = admin.post(f"/api/jobs/{job_id}/requeue")
    assert (retired.status_code, retired.json()["code"]) == (409, "conflict")


async def test_tenants_see_their_own_and_entries_are_the_admins(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    job_id = await lose(database, admin, agent, version)
    stream = f"vyvo:jobs:{version.model_id}"
    async with database.transaction() as store:
        for _ in range(2):
            await store.dead_letters.bury([(stream, "1-0", {"idd": "x"}, "no field id")])
    (entry,) = [e for e in letters(admin, limit=200) if e["stream"] == stream]
    assert (entry["kind"], entry["reason"], entry["fields"]) == (
        "entry",
        "unreadable",
        {"idd": "x"},
    )
    first = admin.get("/api/dead-letters", params={"limit": 1}).json()
    rest = admin.get("/api/dead-letters", params={"cursor": first["next_cursor"]}).json()
    assert first["items"][0]["id"] > rest["items"][0]["id"]
    with api.client(make_key(admin, "jobs:write", tenant="others")["key"]) as other:
        assert letters(other) == []
        assert other.post(f"/api/jobs/{job_id}/requeue").status_code == 404
    with api.client(make_key(admin, "jobs:read", tenant="others")["key"]) as reader:
        assert reader.post(f"/api/jobs/{job_id}/requeue").status_code == 403
