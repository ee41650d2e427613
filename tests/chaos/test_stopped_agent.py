"""An agent that stands still past its leases and goes on, and cancels in every state."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.check import check_record, left_over, unended
from tests.chaos.stack import MODEL, NODES, SLOTS, Stack, stack
from vyvo_dagster.settings import S3Settings

pytestmark = pytest.mark.xdist_group("chaos")

# The grace of a cancel, and the kill that follows where it is not heeded.
CANCEL_SECONDS = 10.0


async def submit(client: httpx.AsyncClient, count: int, seconds: float) -> list[str]:
    jobs = [{"model_id": MODEL, "input": {"sleep_seconds": seconds}}] * count
    answer = await client.post("/api/jobs/batch", json={"jobs": jobs})
    assert answer.status_code == 202, answer.text
    return [job["job_id"] for job in answer.json()["jobs"]]


def by_node(made: Stack, name: str) -> list[str]:
    rows = made.rows(
        "select j.id::text from jobs j join nodes n on n.id = j.node_id"
        " where n.name = %s and j.state = 'running'",
        name,
    )
    return [id_ for (id_,) in rows]


async def test_an_agent_that_was_stopped_past_its_leases_changes_nothing(
    tmp_path: Path, s3_settings: S3Settings
) -> None:
    async with stack(tmp_path, s3_settings) as made, made.client() as client:
        ids = await submit(client, 40, 2.5)
        await made.until(
            lambda: len(by_node(made, NODES[0])) + len(by_node(made, NODES[1])) == 40,
            "all jobs run", 15,
        )  # fmt: skip
        held = by_node(made, NODES[0])
        assert held, "the first node has no job"
        made.signal(NODES[0], signal.SIGSTOP)
        await made.none_left(lambda: unended(made), "the other node has run them", 60)
        before = record(made)
        made.signal(NODES[0], signal.SIGCONT)
        # It finds its predictions long over and reports them, or is told that it is fenced.
        await made.until(
            lambda: made.rows("select state from nodes where name = %s", NODES[0]) == [("ready",)],
            "the node is ready again", 20,
        )  # fmt: skip
        await asyncio.sleep(3)
        assert record(made) == before
        check_record(made, ids, set())
        lost = made.rows(
            "select job_id::text from job_attempts where attempt = 1 and outcome = 'lost'"
        )
        assert {id_ for (id_,) in lost} == set(held)
        await made.none_left(lambda: left_over(made), "streams and outbox are empty", 30)
        # Its slots are free: as many jobs as there are slots run at a time.
        await submit(client, 2 * SLOTS, 2.0)
        await made.until(lambda: len(by_node(made, NODES[0])) == SLOTS, "its slots are free", 15)
        await made.none_left(lambda: unended(made), "the last jobs have ended", 15)


def record(made: Stack) -> list[tuple[Any, ...]]:
    return made.rows(
        "select id, state, attempt, completed_at, output from jobs order by id"
    ) + made.rows("select job_id, attempt, outcome, ended_at from job_attempts order by 1, 2")


async def test_a_cancel_is_final_in_every_state(tmp_path: Path, s3_settings: S3Settings) -> None:
    async with stack(tmp_path, s3_settings) as made, made.client() as client:
        running = await submit(client, 2 * SLOTS, 120)
        await made.until(
            lambda: len(by_node(made, NODES[0])) + len(by_node(made, NODES[1])) == 2 * SLOTS,
            "all slots are taken", 15,
        )  # fmt: skip
        (waiting,) = await submit(client, 1, 0)
        dying = by_node(made, NODES[0])[0]
        alive = by_node(made, NODES[1])[0]
        assert {dying, alive} <= set(running)

        assert (await cancel(client, waiting))["status"] == "canceled"
        await cancel(client, alive)
        await made.until(lambda: state(made, alive) == "canceled", "a running job", 1.5)
        # Its place goes to another job, which is canceled while it is on its way to the node.
        (coming,) = await submit(client, 1, 120)
        await cancel(client, coming)
        await made.until(lambda: state(made, coming) == "canceled", "a job on its way", 2)

        made.signal(NODES[0], signal.SIGSTOP)
        await cancel(client, dying)
        await made.until(
            lambda: state(made, dying) == "canceled",
            "a job of a node that stands still", CANCEL_SECONDS,
        )  # fmt: skip
        made.signal(NODES[0], signal.SIGCONT)
        await asyncio.sleep(2)
        for job_id in (waiting, alive, coming, dying):
            assert state(made, job_id) == "canceled"
            attempts = made.rows("select outcome from job_attempts where job_id::text = %s", job_id)
            assert all(outcome in {"canceled", "lost"} for (outcome,) in attempts), attempts
            assert (await cancel(client, job_id))["status"] == "canceled"  # a repeat


async def cancel(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    answer = await client.post(f"/api/jobs/{job_id}/cancel")
    assert answer.status_code == 200, answer.text
    return answer.json()


def state(made: Stack, job_id: str) -> str:
    return made.rows("select state from jobs where id::text = %s", job_id)[0][0]
