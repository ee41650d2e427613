"""Jobs over HTTP: submission, reports of a played agent, cancel, priority."""

from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect

from .test_nodes import orders, submit
from .world import Agent, Api, Version, dispatch, load, ready_version, unique


async def jobs_of(database: Database, model_id: str) -> int:
    async with database.transaction() as store:
        count = sa.text("select count(*) from jobs where model_id = :m")
        return int((await store.connection.execute(count, {"m": model_id})).scalar_one())


def test_a_job_without_a_ready_node_waits_and_says_so(
    admin: httpx.Client, version: Version
) -> None:
    answer = admin.post(
        "/api/jobs",
        json={"model_id": version.model_id, "input": {"digit": 1}, "ttl_seconds": 5},
    )
    assert answer.status_code == 202
    body = answer.json()
    assert body["status"] == "queued"
    assert body["queue_position"] == 1
    assert body["eta_seconds"] is None
    assert body["detail"] == f"no ready node has {version.model_id}@v1; the job waits up to 5 s"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"input": {"digit": 12}}, 422, "input_schema_mismatch"),
        ({"input": {"digit": "7"}}, 422, "input_schema_mismatch"),
        ({"input": {}}, 422, "input_schema_mismatch"),
        ({"input": {"digit": 1, "stepz": 3}}, 422, "input_schema_mismatch"),
        ({"input": {"digit": 1, "note": "a\u0000b"}}, 422, "invalid_input"),
        ({"input": [1]}, 422, "invalid_input"),
        ({"input": {"digit": 1, "note": "x" * 300_000}}, 422, "invalid_input"),
        ({"priority": "urgent"}, 422, "invalid_input"),
        ({"ttl_seconds": 0}, 422, "invalid_input"),
        ({"version": "v9"}, 404, "not_found"),
        ({"version": "a/b"}, 422, "invalid_input"),
    ],
)
async def test_a_bad_job_is_refused_before_it_is_queued(
    admin: httpx.Client, version: Version, database: Database, change: dict[str, Any], status: int,
    code: str,
) -> None:  # fmt: skip
    body = {"model_id": version.model_id, "input": {"digit": 1}, **change}
    answer = admin.post("/api/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert await jobs_of(database, version.model_id) == 0


async def test_numbers_and_depth_that_json_text_allows_and_a_column_does_not(
    admin: httpx.Client, version: Version, database: Database
) -> None:
    deep = "[" * 200 + "]" * 200
    for raw in (
        '{"digit": NaN}',
        '{"digit": 1e999}',
        '{"digit": "\\ud800"}',
        f'{{"digit": {deep}}}',
    ):
        text = f'{{"model_id": "{version.model_id}", "input": {raw}}}'
        answer = admin.post("/api/jobs", content=text, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input"), raw
    assert await jobs_of(database, version.model_id) == 0


def test_a_schema_mismatch_says_where(admin: httpx.Client, version: Version) -> None:
    answer = admin.post("/api/jobs", json={"model_id": version.model_id, "input": {"digit": 12}})
    assert answer.json()["errors"] == [
        {"path": "$.digit", "message": "12 is greater than the maximum of 9"}
    ]


async def test_a_model_that_is_not_there_or_not_built(
    admin: httpx.Client, version: Version
) -> None:
    answer = admin.post("/api/jobs", json={"model_id": f"test/{unique('x')}", "input": {}})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    admin.patch(f"/api/models/{version.model_id}/versions/v1", json={"state": "retired"})
    answer = admin.post("/api/jobs", json={"model_id": version.model_id, "input": {"digit": 1}})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


async def test_a_submission_is_idempotent(
    admin: httpx.Client, version: Version, database: Database
) -> None:
    body = {"model_id": version.model_id, "input": {"digit": 1}}
    header = {"Idempotency-Key": unique("k")}
    first = admin.post("/api/jobs", json=body, headers=header)
    second = admin.post("/api/jobs", json=body, headers=header)
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert await jobs_of(database, version.model_id) == 1


async def test_a_batch_is_taken_whole_or_not_at_all(
    admin: httpx.Client, version: Version, database: Database
) -> None:
    good = {"model_id": version.model_id, "input": {"digit": 1}}
    bad = {"model_id": version.model_id, "input": {"digit": 99}}
    answer = admin.post("/api/jobs/batch", json={"jobs": [good, bad, good]})
    assert (answer.status_code, answer.json()["code"]) == (422, "input_schema_mismatch")
    assert answer.json()["index"] == 1
    assert await jobs_of(database, version.model_id) == 0
    answer = admin.post("/api/jobs/batch", json={"jobs": [good] * 3})
    assert answer.status_code == 202
    assert [j["queue_position"] for j in answer.json()["jobs"]] == [1, 2, 3]


async def test_from_submission_to_the_artifact(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    submitted = admin.post(
        "/api/jobs", json={"model_id": version.model_id, "input": {"digit": 7}}
    ).json()
    assert submitted["detail"] is None
    job_id = submitted["job_id"]
    async with connect(api.settings.redis_url) as redis:
        queue = keys.jobs(version.model_id, version.name, Priority.STANDARD, "admin")
        entries = await redis.xread({queue: "0"}, block=3000)
    assert entries
    job = await dispatch(database, job_id, agent, assignment_id)
    path = f"/api/jobs/{job_id}/progress"
    answer = agent.post(path, {"attempt": 1})
    assert answer.json() == {"status": "running", "cancel_requested": False}
    assert (
        agent.post(path, {"attempt": 1, "fraction": 0.5, "logs": ["half\u0000way"]}).status_code
        == 200
    )
    assert admin.get(f"/api/jobs/{job_id}").json()["progress"] == 0.5
    bucket = f"{api.s3.bucket_prefix}image"
    url = ObjectStore(api.s3).put_bytes(bucket, f"{job_id}.png", b"\x89PNG", "image/png")
    artifact = {"type": "image", "url": url, "size_bytes": 4, "mime_type": "image/png",
                "expires_at": "2030-01-01T00:00:00Z"}  # fmt: skip
    report = {"artifacts": [artifact], "output": [artifact], "timings": {"predict": 0.25}}
    done = agent.complete(job.id, 1, "succeeded", **report)
    assert done.json() == {"job_id": job_id, "attempt": 1, "job_status": "succeeded"}
    assert agent.complete(job.id, 1, "succeeded", **report).json() == done.json()
    shown = admin.get(f"/api/jobs/{job_id}").json()
    assert (shown["status"], shown["progress"]) == ("succeeded", 1.0)
    assert shown["timings"] == {"predict": 0.25}
    (made,) = shown["artifacts"]
    assert {k: made[k] for k in ("type", "url", "size_bytes", "mime_type")} == {
        k: artifact[k] for k in ("type", "url", "size_bytes", "mime_type")
    }
    assert httpx.get(made["presigned_url"], trust_env=False).content == b"\x89PNG"
    assert admin.get(f"/api/artifacts/{made['id']}").json()["job_id"] == job_id
    listed = admin.get("/api/artifacts", params={"type": "image", "limit": 200}).json()["items"]
    assert made["id"] in [a["id"] for a in listed]
    # Another end of the same attempt, or a report of one that never was, changes nothing.
    for stale in (
        agent.complete(job.id, 1, "failed"),
        agent.complete(job.id, 2, "succeeded"),
        agent.post(path, {"attempt": 1, "fraction": 0.9}),
    ):
        assert (stale.status_code, stale.json()["code"]) == (409, "stale_attempt")
    assert admin.get(f"/api/jobs/{job_id}").json() | {"artifacts": 0} == shown | {"artifacts": 0}
    assert 'vyvo_jobs_total{model="' + version.model_id in admin.get("/metrics").text


async def test_a_failure_carries_its_reason(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job = await dispatch(database, submit(admin, version), agent, assignment_id)
    error = {"code": "prediction_failed", "message": "bad\u0000thing"}
    assert agent.complete(job.id, 1, "failed", error=error, timings={"x": 1}).status_code == 200
    shown = admin.get(f"/api/jobs/{job.id}").json()
    assert shown["status"] == "failed"
    assert shown["error"] == {"code": "prediction_failed", "message": "bad\ufffdthing"}


async def test_artifacts_come_from_our_buckets_only(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    for bucket in ("someone-else", f"{api.s3.bucket_prefix}model", f"{api.s3.bucket_prefix}log"):
        job = await dispatch(database, submit(admin, version), agent, assignment_id)
        artifact = {"type": "image", "url": f"s3://{bucket}/x", "size_bytes": 1, "mime_type": "a/b"}
        answer = agent.complete(job.id, 1, "succeeded", artifacts=[artifact])
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_report")
        shown = admin.get(f"/api/jobs/{job.id}").json()
        assert (shown["status"], shown["error"]["code"]) == ("failed", "invalid_report")


async def test_an_attempt_is_reported_by_its_own_node_only(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job = await dispatch(database, submit(admin, version), agent, assignment_id)
    other = Agent(api)
    other.register()
    assert other.complete(job.id, 1, "succeeded").json()["code"] == "stale_attempt"
    assert other.post(f"/api/jobs/{job.id}/progress", {"attempt": 1}).status_code == 409
    assert (
        admin.post(
            f"/api/jobs/{job.id}/complete", json={"attempt": 1, "status": "failed"}
        ).status_code
        == 403
    )
    assert agent.complete(uuid7(), 1, "succeeded").status_code == 404
    other.client.close()


async def test_a_handed_back_attempt_is_queued_again_uncharged(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job_id = submit(admin, version)
    for attempt in range(1, 6):  # more often than max_attempts
        job = await dispatch(database, job_id, agent, assignment_id)
        assert job.attempt == attempt
        for _ in range(2):
            answer = agent.complete(job.id, attempt, "handed_back")
            assert (answer.status_code, answer.json()["job_status"]) == (200, "queued")
    assert admin.get(f"/api/jobs/{job_id}").json()["status"] == "queued"


async def test_cancel_where_it_waits_and_where_it_runs(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    waiting = submit(admin, version)
    for _ in range(2):
        answer = admin.post(f"/api/jobs/{waiting}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assignment_id = await load(admin, agent, version)
    job = await dispatch(database, submit(admin, version), agent, assignment_id)
    answer = admin.post(f"/api/jobs/{job.id}/cancel").json()
    assert (answer["status"], answer["cancel_requested"]) == ("dispatched", True)
    kinds = [(o["kind"], str(job.id) in o["body"]) for o in await orders(api, agent, 2)]
    assert kinds == [("sync", False), ("cancel", True)]
    assert agent.post(f"/api/jobs/{job.id}/progress", {"attempt": 1}).json()["cancel_requested"]
    assert agent.complete(job.id, 1, "canceled").status_code == 200
    assert admin.get(f"/api/jobs/{job.id}").json()["status"] == "canceled"
    done = await dispatch(database, submit(admin, version), agent, assignment_id)
    agent.complete(done.id, 1, "succeeded")
    answer = admin.post(f"/api/jobs/{done.id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


async def test_the_priority_of_a_waiting_job(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    first, second = submit(admin, version), submit(admin, version)
    assert admin.get(f"/api/jobs/{second}").json()["queue_position"] == 2
    answer = admin.patch(f"/api/jobs/{second}", json={"priority": "interactive"})
    assert (answer.json()["priority"], answer.json()["queue_position"]) == ("interactive", 1)
    assert admin.get(f"/api/jobs/{first}").json()["queue_position"] == 2
    async with connect(api.settings.redis_url) as redis:
        queue = keys.jobs(version.model_id, version.name, Priority.INTERACTIVE, "admin")
        found = await redis.xread({queue: "0"}, block=3000)
    assert found
    assignment_id = await load(admin, agent, version)
    await dispatch(database, first, agent, assignment_id)
    answer = admin.patch(f"/api/jobs/{first}", json={"priority": "batch"})
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


async def test_a_trace_context_is_kept_if_it_is_one(
    admin: httpx.Client, version: Version, database: Database
) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    kept: list[str | None] = []
    for sent in (trace, "nonsense"):
        answer = admin.post(
            "/api/jobs", json={"model_id": version.model_id, "input": {"digit": 1}},
            headers={"traceparent": sent},
        )  # fmt: skip
        async with database.transaction() as store:
            job = await store.jobs.get(UUID(answer.json()["job_id"]), None)
        assert job is not None
        kept.append(job.traceparent)
    assert kept == [trace, None]


async def test_a_version_without_a_schema_takes_any_input(
    admin: httpx.Client, database: Database
) -> None:
    version = await ready_version(database, schema=None)
    answer = admin.post("/api/jobs", json={"model_id": version.model_id, "input": {"any": [1]}})
    assert answer.status_code == 202


async def test_how_long_a_prediction_may_take_is_the_jobs_or_its_versions_word(
    admin: httpx.Client, version: Version
) -> None:
    def limit(**values: Any) -> Any:
        body = {"model_id": version.model_id, "input": {"digit": 1}, **values}
        job_id = admin.post("/api/jobs", json=body).json()["job_id"]
        return admin.get(f"/api/jobs/{job_id}").json()["timeout_seconds"]

    assert (limit(), limit(timeout_seconds=7)) == (3600, 7)
    path = f"/api/models/{version.model_id}/versions/slow"
    slow = {
        "modality": "image",
        "runner_image": "noop://slow",
        "resources": {"timeout_seconds": 90},
    }
    assert admin.put(path, json=slow).json()["state"] == "ready"
    assert (limit(version="slow"), limit(version="slow", timeout_seconds=7)) == (90, 7)
    bad = {"model_id": version.model_id, "input": {"digit": 1}, "timeout_seconds": 0}
    assert admin.post("/api/jobs", json=bad).json()["code"] == "invalid_input"
