"""/api/artifacts and `vyvo artifacts`: what is shown of artifacts, who sees them, and passes that collect."""

import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import sqlalchemy as sa

from vyvo_dagster.domain.retention import ArtifactState
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.tables import artifacts

from .test_cli import Cli, cli
from .test_nodes import submit
from .world import Agent, Api, Version, dispatch, load

__all__ = ["cli"]

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
async def made(
    api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> dict[str, Any]:
    """An artifact of a job, as the api shows it."""
    assignment_id = await load(admin, agent, version)
    job = await dispatch(database, submit(admin, version), agent, assignment_id)
    key = f"2026/01/31/{job.id}.1/{secrets.token_hex(8)}.png"
    url = ObjectStore(api.s3).put_bytes(f"{api.s3.bucket_prefix}image", key, PNG, "image/png")
    artifact = {
        "type": "image", "url": url, "size_bytes": len(PNG), "mime_type": "image/png",
        "expires_at": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
    }  # fmt: skip
    done = agent.complete(job.id, 1, "succeeded", artifacts=[artifact], output=[artifact])
    assert done.status_code == 200, done.text
    (shown,) = admin.get("/api/artifacts", params={"job_id": str(job.id)}).json()["items"]
    return shown


async def change(database: Database, artifact: dict[str, Any], **values: Any) -> None:
    async with database.transaction() as store:
        await store.connection.execute(
            sa.update(artifacts).where(artifacts.c.id == artifact["id"]).values(**values)
        )


def life(url: str) -> int:
    return int(parse_qs(urlsplit(url).query)["X-Amz-Expires"][0])


async def test_a_url_lives_as_long_as_was_asked_and_no_longer_than_the_artifact(
    admin: httpx.Client, made: dict[str, Any], api: Api, database: Database
) -> None:
    path, most = f"/api/artifacts/{made['id']}", api.settings.presign_seconds
    assert made["state"] == "stored"
    assert life(made["presigned_url"]) == most
    short = admin.get(path, params={"presign_seconds": 5}).json()["presigned_url"]
    assert life(short) == 5
    assert httpx.get(short, trust_env=False).content == PNG
    refused = admin.get(path, params={"presign_seconds": most + 1})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
    await change(database, made, expires_at=datetime.now(UTC) + timedelta(seconds=90))
    assert 1 <= life(admin.get(path).json()["presigned_url"]) <= 90
    await change(database, made, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert admin.get(path).json()["presigned_url"] is None


async def test_what_is_gone_is_shown_without_a_url(
    admin: httpx.Client, made: dict[str, Any], database: Database
) -> None:
    for state in (ArtifactState.EXPIRED, ArtifactState.MISSING, ArtifactState.DELETED):
        await change(database, made, state=state)
        shown = admin.get(f"/api/artifacts/{made['id']}").json()
        assert (shown["state"], shown["presigned_url"]) == (state, None)
        listed = admin.get("/api/artifacts", params={"state": state, "limit": 200}).json()["items"]
        assert made["id"] in [a["id"] for a in listed]
    (of_job,) = admin.get(f"/api/jobs/{made['job_id']}").json()["artifacts"]
    assert of_job["presigned_url"] is None


def test_only_admins_collect_and_without_dagster_nobody(
    admin: httpx.Client, api: Api, made: dict[str, Any]
) -> None:
    body = {"name": "reader", "tenant": "other", "scopes": ["artifacts:read"]}
    key = admin.post("/api/keys", json=body).json()["key"]
    with api.client(key) as reader:
        assert reader.get(f"/api/artifacts/{made['id']}").status_code == 404
        assert reader.get("/api/artifacts").json()["items"] == []
        assert reader.post("/api/artifacts/sweeps", json={}).status_code == 403
        assert reader.get("/api/artifacts/sweeps").status_code == 403
    asked = admin.post("/api/artifacts/sweeps", json={}, headers={"Idempotency-Key": "once-more"})
    assert (asked.status_code, asked.json()["code"]) == (503, "unavailable")
    assert "VYVO_DAGSTER_URL" in asked.json()["detail"]
    # It is noted as failed, and the same key asks anew.
    first = admin.get("/api/artifacts/sweeps").json()["items"][0]
    assert (first["status"], first["report"]) == ("failed", None)
    assert admin.get(f"/api/artifacts/sweeps/{first['id']}").json() == first
    again = admin.post("/api/artifacts/sweeps", json={}, headers={"Idempotency-Key": "once-more"})
    assert again.status_code == 503
    assert admin.get("/api/artifacts/sweeps").json()["items"][0]["id"] != first["id"]
    for bad in ({"grace_hours": 0.5}, {"dry": True}):
        assert admin.post("/api/artifacts/sweeps", json=bad).status_code == 422
    assert admin.get(f"/api/artifacts/sweeps/{made['id']}").status_code == 404


def test_the_command_lists_shows_and_saves(
    cli: Cli, made: dict[str, Any], tmp_path: Path, api: Api
) -> None:
    listed = cli.run("artifacts", "ls", "--job", made["job_id"])
    assert listed.returncode == 0, listed.stderr
    assert made["id"] in listed.stdout
    assert "image/png" in listed.stdout
    assert [a["id"] for a in cli.json("artifacts", "ls", "--job", made["job_id"])["items"]] == [
        made["id"]
    ]
    shown = cli.run("artifacts", "get", made["id"])
    assert made["url"] in shown.stdout
    saved = cli.run("artifacts", "get", made["id"], "-o", tmp_path / "a.png")
    assert saved.returncode == 0, saved.stderr
    assert (tmp_path / "a.png").read_bytes() == PNG
    (tmp_path / "folder").mkdir()
    assert cli.run("artifacts", "get", made["id"], "-o", tmp_path / "folder").returncode == 0
    (inside,) = (tmp_path / "folder").iterdir()
    assert inside.read_bytes() == PNG
    assert json.loads(cli.run("artifacts", "get", made["id"], "--json").stdout)["id"] == made["id"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("get", "00000000-0000-7000-8000-000000000000"), "no such artifact"),
        (("get", "../../keys"), ""),
        (("ls", "--job", "no-uuid"), ""),
        (("ls", "--cursor", "x"), ""),
    ],
)
def test_a_refused_command_is_one_line(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    done = cli.run("artifacts", *arguments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"vyvo artifacts {arguments[0]}: ")
    assert said in done.stderr


def test_a_pass_that_cannot_begin_says_why(cli: Cli) -> None:
    done = cli.run("artifacts", "gc", "--dry-run")
    assert done.returncode == 1
    assert "VYVO_DAGSTER_URL" in done.stderr
