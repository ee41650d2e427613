"""A node's reports in batches: order, fencing, repeats, and items that cannot be used."""

import asyncio
import threading
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams.client import AsyncRedis, connect
from vyvo_dagster.streams.events import replay

from .test_nodes import submit
from .world import Agent, Api, Version, dispatch, load


def started(job_id: object, attempt: int = 1, **values: Any) -> dict[str, Any]:
    return {"job_id": str(job_id), "progress": {"attempt": attempt, **values}}


def ended(job_id: object, status: str = "succeeded", attempt: int = 1, **values: Any) -> Any:
    return {"job_id": str(job_id), "completion": {"attempt": attempt, "status": status, **values}}


def report(agent: Agent, *items: Any) -> list[dict[str, Any]]:
    answer = agent.post(f"/api/nodes/{agent.id}/reports", {"items": list(items)})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    assert len(results) == len(items)
    return results


def codes(results: list[dict[str, Any]]) -> list[str | None]:
    """Each item's status, or its problem's code."""
    return [r["problem"]["code"] if r["problem"] else r["status"] for r in results]


async def kinds(redis: AsyncRedis, job_id: object) -> list[str]:
    """What was told of a job that has ended; an end is told soon after its report is answered."""
    async with asyncio.timeout(30):
        while True:
            found = [e.kind for e in await replay(redis, str(job_id))]
            if found[-1:] == ["completed"]:
                return found
            await asyncio.sleep(0.01)


async def dispatched(
    admin: httpx.Client, agent: Agent, version: Version, database: Database, count: int
) -> list[UUID]:
    assignment_id = await load(admin, agent, version)
    return [
        (await dispatch(database, submit(admin, version), agent, assignment_id)).id
        for _ in range(count)
    ]


async def test_a_start_travels_with_its_end_and_events_keep_the_order(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    first, second, third = await dispatched(admin, agent, version, database, 3)
    bucket = f"{api.s3.bucket_prefix}image"
    url = ObjectStore(api.s3).put_bytes(bucket, f"{first}.png", b"\x89PNG", "image/png")
    made = {"type": "image", "url": url, "size_bytes": 4, "mime_type": "image/png"}
    results = report(
        agent,
        started(first),
        started(second),
        started(first, fraction=0.5, logs=["half\u0000way"]),
        ended(first, artifacts=[made], output={"n": "a\u0000b"}, timings={"predict": 0.5}),
        started(third, fraction=0.25),
        ended(second, "failed", error={"code": "prediction_failed", "message": "no"}),
    )
    assert codes(results) == ["running", "running", "running", "succeeded", "running", "failed"]
    shown = admin.get(f"/api/jobs/{first}").json()
    assert (shown["status"], shown["progress"]) == ("succeeded", 1.0)
    assert shown["output"] == {"n": "a\ufffdb"}
    assert shown["timings"] == {"predict": 0.5}
    assert shown["started_at"] > shown["dispatched_at"]
    assert [a["url"] for a in shown["artifacts"]] == [url]
    assert [a["outcome"] for a in shown["attempts"]] == ["succeeded"]
    failed = admin.get(f"/api/jobs/{second}").json()
    assert failed["error"] == {"code": "prediction_failed", "message": "no"}
    running = admin.get(f"/api/jobs/{third}").json()
    assert (running["status"], running["progress"]) == ("running", 0.25)
    async with connect(api.settings.redis_url) as redis:
        told = await kinds(redis, first)
    assert told == ["queued", "started", "progress", "log", "artifact", "completed"]


async def test_fencing_and_repeats_item_by_item(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    first, second = await dispatched(admin, agent, version, database, 2)
    items = [
        ended(first, output=1),
        ended(first, output=2),  # the same end once more, in the same batch
        started(first),
        ended(first, "failed"),
        ended(second, attempt=2),
        ended(uuid7()),
        started(second),
    ]
    expected = [
        "succeeded", "succeeded", "stale_attempt", "stale_attempt", "stale_attempt", "not_found",
        "running",
    ]  # fmt: skip
    for _ in range(2):
        assert codes(report(agent, *items)) == expected
    assert admin.get(f"/api/jobs/{first}").json()["output"] == 1
    other = Agent(api)
    other.register()
    assert (
        codes(report(other, ended(first), ended(second), started(second))) == ["stale_attempt"] * 3
    )
    assert admin.get(f"/api/jobs/{second}").json()["status"] == "running"
    # A single report is the same report.
    assert agent.complete(first, 1, "succeeded").json()["job_status"] == "succeeded"
    for token in (other.credential, api.admin_key):
        answer = agent.post(f"/api/nodes/{agent.id}/reports", {"items": items}, token)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    other.client.close()


async def test_a_bad_item_hurts_only_itself_and_ends_its_attempt(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    foreign, odd, far, fine, going = await dispatched(admin, agent, version, database, 5)
    artifact = {"type": "image", "size_bytes": 1, "mime_type": "a/b"}
    late = {
        **artifact,
        "url": f"s3://{api.s3.bucket_prefix}image/x",
        "expires_at": "9999-12-31T23:59:59Z",
    }
    items = [
        ended(foreign, artifacts=[{**artifact, "url": f"s3://{api.s3.bucket_prefix}model/x"}]),
        ended(odd, "done"),
        ended(far, artifacts=[late]),
        ended(fine),
        started(going, fraction=7),
        {"job_id": str(going)},
        "nonsense",
    ]
    for _ in range(2):
        results = report(agent, *items)
        assert codes(results) == ["invalid_report"] * 3 + ["succeeded"] + ["invalid_report"] * 3
        assert {r["problem"]["status"] for r in results if r["problem"]} == {422}
    for job_id, said in ((foreign, "none of the buckets"), (odd, "status"), (far, "expires_at")):
        shown = admin.get(f"/api/jobs/{job_id}").json()
        assert (shown["status"], shown["error"]["code"]) == ("failed", "invalid_report")
        assert said in shown["error"]["message"]
        assert shown["attempts"][0]["error_code"] == "invalid_report"
    # What was only progress ends nothing.
    assert admin.get(f"/api/jobs/{going}").json()["status"] == "dispatched"
    for bad in ({"items": []}, {"items": [started(fine)] * 1025}, {}):
        answer = agent.post(f"/api/nodes/{agent.id}/reports", bad)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


async def test_an_end_that_the_database_refuses_holds_back_no_other(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    bad, fine = await dispatched(admin, agent, version, database, 2)
    name = f"refuse_{bad.hex}"
    async with database.transaction() as store:
        for statement in (
            (
                f"create function {name}() returns trigger language plpgsql as "
                "$$ begin raise exception 'out of range' using errcode = '22003'; end $$"
            ),
            (
                f"create trigger {name} before update on jobs for each row "
                f"when (new.id = '{bad}' and new.state = 'succeeded') execute function {name}()"
            ),
        ):
            await store.connection.execute(sa.text(statement))
    try:
        assert codes(report(agent, ended(bad), ended(fine))) == ["invalid_report", "succeeded"]
    finally:
        async with database.transaction() as store:
            await store.connection.execute(sa.text(f"drop trigger {name} on jobs"))
    shown = admin.get(f"/api/jobs/{bad}").json()
    assert (shown["status"], shown["error"]["code"]) == ("failed", "invalid_report")


async def test_a_handed_back_item_is_queued_again_and_nothing_follows_it(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    back, canceled = await dispatched(admin, agent, version, database, 2)
    admin.post(f"/api/jobs/{canceled}/cancel")
    items = [started(back), ended(back, "handed_back"), ended(canceled, "handed_back")]
    results = report(agent, *items, started(back), ended(back))
    assert codes(results) == ["running", "queued", "canceled", "stale_attempt", "stale_attempt"]
    assert codes(report(agent, *items)) == ["stale_attempt", "queued", "canceled"]
    shown = admin.get(f"/api/jobs/{back}").json()
    assert (shown["status"], shown["started_at"]) == ("queued", None)


async def test_a_crash_is_tried_again_after_a_wait_and_the_last_one_gives_its_reason(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job_id = submit(admin, version)
    for attempt in (1, 2, 3):
        await dispatch(database, job_id, agent, assignment_id)
        error = {"code": "runner_crashed", "message": f"SIGSEGV {attempt}"}
        crash = ended(job_id, "failed", attempt, error=error)
        status = "queued" if attempt < 3 else "failed"
        for _ in range(2):
            assert codes(report(agent, crash)) == [status]
        async with database.transaction() as store:
            job = await store.jobs.get(UUID(job_id), None)
            assert job is not None
            # It is in no stream, and is put in none by a rebuild, before its time has come.
            assert job.id not in [j.id for j in await store.jobs.queued(None, 10_000)]
            if attempt < 3:
                (closed,) = (await store.attempts.of_job(job.id))[-1:]
                assert job.retry_at is not None
                assert closed.ended_at is not None
                assert (job.retry_at - closed.ended_at).total_seconds() == 2 ** (attempt - 1)
    shown = admin.get(f"/api/jobs/{job_id}").json()
    assert (shown["status"], shown["error"]) == ("failed", error)
    assert [(a["outcome"], a["error_code"], a["error_message"]) for a in shown["attempts"]] == [
        ("failed", "runner_crashed", f"SIGSEGV {n}") for n in (1, 2, 3)
    ]
    async with connect(api.settings.redis_url) as redis:
        told = await kinds(redis, job_id)
    assert told == ["queued", "requeued", "requeued", "completed"]
    # What is the job's own fault is not tried again.
    own = submit(admin, version)
    await dispatch(database, own, agent, assignment_id)
    fault = {"code": "prediction_failed", "message": "no"}
    assert codes(report(agent, ended(own, "failed", error=fault))) == ["failed"]


async def test_batches_and_heartbeats_over_the_same_rows_do_not_wait_in_a_circle(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    jobs = await dispatched(admin, agent, version, database, 40)
    running = [{"job_id": str(job_id), "attempt": 1} for job_id in reversed(jobs)]
    statuses: list[int] = []

    def reports(ids: list[UUID]) -> None:
        for n in range(10):
            items = [started(job_id, fraction=n / 10) for job_id in ids]
            answer = agent.post(f"/api/nodes/{agent.id}/reports", {"items": items})
            statuses.append(answer.status_code)

    def beats() -> None:
        statuses.extend(agent.beat(running=running).status_code for _ in range(10))

    threads = [
        threading.Thread(target=reports, args=(jobs,)),
        threading.Thread(target=reports, args=(jobs[::-1],)),
        threading.Thread(target=beats),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert statuses == [200] * 30
