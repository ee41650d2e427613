"""What a client asks of a job while somebody else changes it."""

import asyncio

import httpx
import sqlalchemy as sa

from vyvo_dagster.dispatch.requeue import requeue_lost
from vyvo_dagster.store.attempts import LOST, Gone
from vyvo_dagster.store.database import Database

from .test_nodes import submit
from .world import Agent, Version, dispatch, load


async def asked_meanwhile(
    database: Database,
    admin: httpx.Client,
    agent: Agent,
    version: Version,
    *,
    losses: int,
    ask: str,
) -> httpx.Response:
    """The answer to `ask` of a job whose node is lost for the last time while that is asked."""
    assignment_id = await load(admin, agent, version)
    job_id = submit(admin, version)
    for _ in range(losses - 1):
        job = await dispatch(database, job_id, agent, assignment_id)
        async with database.transaction() as store:
            await requeue_lost(store, job, Gone(LOST), charged=True)
    job = await dispatch(database, job_id, agent, assignment_id)
    async with database.transaction() as store:
        await requeue_lost(store, job, Gone(LOST), charged=True)
        own = (await store.connection.execute(sa.text("select pg_backend_pid()"))).scalar_one()
        asked = asyncio.create_task(asyncio.to_thread(admin.post, f"/api/jobs/{job_id}/{ask}"))
        blocked = sa.text(
            "select count(*) from pg_stat_activity where :own = any(pg_blocking_pids(pid))"
        )
        async with asyncio.timeout(30):
            while not asked.done():
                if (await store.connection.execute(blocked, {"own": own})).scalar_one():
                    break
                # Its view of the activity is taken once in a transaction.
                await store.connection.execute(sa.text("select pg_stat_clear_snapshot()"))
                await asyncio.sleep(0.02)
    return await asked


async def test_a_cancel_while_the_job_is_queued_again_cancels_it(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    answer = await asked_meanwhile(database, admin, agent, version, losses=1, ask="cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled"), answer.text


async def test_a_requeue_while_the_job_fails_queues_it_again(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    answer = await asked_meanwhile(database, admin, agent, version, losses=3, ask="requeue")
    assert (answer.status_code, answer.json().get("status")) == (202, "queued"), answer.text
