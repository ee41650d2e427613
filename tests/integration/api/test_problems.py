"""Every error is a problem document, and servers that are away are said to be."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database

from .world import WEIGHTS, Api, Running, Version, make_settings, unique

NOWHERE = "redis://127.0.0.1:1/0"


def test_routes_and_methods_that_are_not_there(admin: httpx.Client) -> None:
    for method, path, status, code in (
        ("GET", "/api/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("DELETE", "/api/jobs", 405, "method_not_allowed"),
        ("GET", "/api/nodes/register/x/y", 404, "not_found"),
    ):
        answer = admin.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["code"] == code
        assert problem.keys() >= {"type", "title", "status", "detail"}
        assert problem["status"] == status


def test_validation_says_where_and_echoes_nothing(admin: httpx.Client) -> None:
    answer = admin.post("/api/jobs", json={"model_id": 7, "inputs": "s3cret"})
    assert answer.status_code == 422
    locations = [e["loc"] for e in answer.json()["errors"]]
    assert ["body", "model_id"] in locations
    assert ["body", "input"] in locations
    assert "s3cret" not in answer.text
    bad = admin.get("/api/jobs", params={"limit": 0, "cursor": "x"})
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_input")


def test_a_bad_idempotency_key_is_refused(admin: httpx.Client) -> None:
    for key in ("", "with space", "x" * 300):
        answer = admin.post(
            "/api/jobs", json={"model_id": "a/b", "input": {}}, headers={"Idempotency-Key": key}
        )
        assert answer.status_code == 422


def test_probes_need_no_key(api: Api) -> None:
    with httpx.Client(base_url=api.url, trust_env=False) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready", "redis": True}
        metrics = client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "vyvo_http_request_seconds" in metrics.text
        assert 'route="/api/jobs/{job_id}"' in metrics.text or "unmatched" in metrics.text
        assert client.get("/openapi.json").json()["info"]["title"] == "vyvo-dagster"


@pytest.fixture
def without_redis(postgres_dsn: str, s3_settings: S3Settings, tmp_path: Path) -> Any:
    settings = make_settings(postgres_dsn, NOWHERE, tmp_path)
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    headers = {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
    with httpx.Client(base_url=running.url, headers=headers, trust_env=False, timeout=10) as client:
        yield client
    running.close()


async def test_jobs_are_taken_while_redis_is_away(
    without_redis: httpx.Client, version: Version, database: Database
) -> None:
    client = without_redis
    assert client.get("/readyz").json() == {"status": "degraded", "redis": False}
    body = {"model_id": version.model_id, "input": {"digit": 1}}
    started = time.monotonic()
    answers = [client.post("/api/jobs", json=body) for _ in range(3)]
    assert [a.status_code for a in answers] == [202] * 3
    assert time.monotonic() - started < 2
    job_id = answers[0].json()["job_id"]
    build = {"template": "digits-diffusion", "runner_name": "r", "version": "v1", **WEIGHTS}
    queued = client.post("/api/builds", json={**build, "model_id": f"test/{unique('q')}"})
    assert queued.status_code == 202
    shown = client.get(f"/api/builds/{queued.json()['build_id']}").json()
    assert shown["log"]["available"] is False
    client.post(f"/api/jobs/{job_id}/cancel")
    ended = client.get(f"/api/jobs/{job_id}/events")
    assert "event: completed" in ended.text
    assert '"status":"canceled"' in ended.text


def test_a_database_that_is_away_is_503(
    redis_url: str, s3_settings: S3Settings, tmp_path: Path
) -> None:
    settings = make_settings("postgresql://x@127.0.0.1:1/x", redis_url, tmp_path)
    settings = settings.model_copy(update={"admin_key": None})
    running = Running(settings, s3_settings)
    try:
        with httpx.Client(base_url=running.url, trust_env=False, timeout=10) as client:
            headers = {"Authorization": "Bearer vyk_00000000_" + "A" * 43}
            for answer in (client.get("/readyz"), client.get("/api/jobs", headers=headers)):
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                assert int(answer.headers["retry-after"]) > 0
            assert client.get("/healthz").status_code == 200
            assert client.get("/metrics").status_code == 200
    finally:
        running.close()
