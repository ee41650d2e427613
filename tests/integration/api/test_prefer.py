"""A submission that waits for its job's end."""

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx

from vyvo_dagster.store.database import Database

from .world import Agent, Version, dispatch, load


def waiting(admin: httpx.Client, version: Version, prefer: str) -> httpx.Response:
    body = {"model_id": version.model_id, "input": {"digit": 1}}
    return admin.post("/api/jobs", json=body, headers={"prefer": prefer})


async def test_a_job_that_ends_in_time_is_the_answer(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    for status in ("succeeded", "failed"):
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(waiting, admin, version, "respond-async, wait=8")
            deadline = time.monotonic() + 5
            found: list[dict[str, str]] = []
            while not found:
                assert time.monotonic() < deadline
                params = {"model_id": version.model_id, "status": "queued"}
                found = admin.get("/api/jobs", params=params).json()["items"]
            job = await dispatch(database, found[0]["job_id"], agent, assignment_id)
            assert not asked.done()
            ended = time.monotonic()
            assert agent.complete(job.id, 1, status, output=[1]).status_code == 200
            answer = asked.result(10)
        assert time.monotonic() - ended < 2  # by the event, not by the end of the wait
        assert answer.status_code == 200
        assert answer.headers["preference-applied"] == "wait=8"
        shown = answer.json()
        assert (UUID(shown["job_id"]), shown["status"]) == (job.id, status)
        assert shown == admin.get(f"/api/jobs/{job.id}").json()


def test_a_job_that_does_not_end_in_time_is_queued_as_ever(
    admin: httpx.Client, version: Version
) -> None:
    started = time.monotonic()
    answer = waiting(admin, version, "wait=1")
    assert 0.9 < time.monotonic() - started < 4
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert "preference-applied" not in answer.headers
    started = time.monotonic()
    assert waiting(admin, version, "wait=nonsense").status_code == 202
    assert time.monotonic() - started < 0.9
