"""Builds over HTTP, without a Dagster: what is refused, written, followed, canceled."""

import json
import time
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.build_queue import BuildLimits
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect

from .world import Api, unique

COUNTED = ("models", "model_versions", "runner_builds", "outbox", "audit_log", "idempotency_keys")


def body(**values: Any) -> dict[str, Any]:
    return {
        "template": "digits-diffusion", "runner_name": "digits", "model_id": f"test/{unique('b')}",
        "version": "v1", "repo": "https://github.com/owner/name", "env": {"LOG_LEVEL": "info"},
        "weights_uri": "s3://vyvo-model/weights/sha256/" + "0" * 64, **values,
    }  # fmt: skip


async def rows(database: Database) -> dict[str, int]:
    async with database.transaction() as store:
        return {
            table: int(
                (
                    await store.connection.execute(sa.text(f"select count(*) from {table}"))
                ).scalar_one()
            )
            for table in COUNTED
        }


REFUSED = [
    ({"template": "no-such-template"}, "unknown_template"),
    ({"template": "../../etc"}, "unknown_template"),
    ({"model_id": "owner/../name"}, "invalid_model_id"),
    ({"model_id": "owner/na me"}, "invalid_model_id"),
    ({"model_id": "o/" + "x" * 300}, "invalid_model_id"),
    ({"model_id": "owner"}, "invalid_model_id"),
    ({"model_id": "owner/a\u0000b"}, "invalid_model_id"),
    ({"version": "../v1"}, "invalid_input"),
    ({"version": "v1@x"}, "invalid_input"),
    ({"env": {"A": "one\ntwo"}}, "invalid_env"),
    ({"env": {"A": "one\u0000two"}}, "invalid_env"),
    ({"env": {"A B": "x"}}, "invalid_env"),
    ({"env": {"LD_PRELOAD": "/x.so"}}, "invalid_env"),
    ({"env": {"VYVO_S3_SECRET_KEY": "x"}}, "invalid_env"),
    ({"weights_uri": "gopher://host/file"}, "invalid_weights_uri"),
    ({"weights_uri": "file:///etc/passwd"}, "invalid_weights_uri"),
    ({"weights_uri": "/etc/passwd"}, "invalid_weights_uri"),
    ({"weights_uri": "https://169.254.169.254/latest/meta-data"}, "invalid_weights_uri"),
    ({"weights_uri": "https://127.0.0.1/file"}, "invalid_weights_uri"),
    ({"repo": "git@github.com:owner/name"}, "invalid_input"),
    ({"base_image": "; rm -rf /"}, "invalid_input"),
    ({"runner_name": "../x"}, "invalid_input"),
    ({"backend": "kaniko"}, "invalid_input"),
    ({"unknown_member": 1}, "invalid_input"),
    ({"env": {"A": 1}}, "invalid_input"),
]


@pytest.mark.parametrize(("change", "code"), REFUSED, ids=lambda v: json.dumps(v)[:60])
async def test_bad_input_is_named_and_leaves_no_row(
    admin: httpx.Client, database: Database, change: dict[str, Any], code: str
) -> None:
    before = await rows(database)
    answer = admin.post(
        "/api/builds", json=body(**change), headers={"Idempotency-Key": unique("k")}
    )
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code
    assert problem["detail"]
    assert "\n" not in problem["detail"]
    assert await rows(database) == before


async def test_a_body_that_is_no_json_or_too_large_leaves_no_row(
    admin: httpx.Client, database: Database
) -> None:
    before = await rows(database)
    answer = admin.post("/api/builds", content=b"{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    answer = admin.post("/api/builds", json=body(env={"A": "x" * (2 << 20)}))
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")

    def chunks() -> Any:
        for _ in range(40):
            yield b" " * 65536

    answer = admin.post(
        "/api/builds", content=chunks(), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert await rows(database) == before


async def test_a_build_is_a_row_a_version_and_a_stream_entry(
    api: Api, admin: httpx.Client, database: Database
) -> None:
    sent = body()
    answer = admin.post("/api/builds", json=sent)
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"
    build_id = answer.json()["build_id"]
    shown = admin.get(f"/api/builds/{build_id}").json()
    assert shown["status"] == "queued"
    assert shown["backend"] == "auto"
    assert shown["env"] == {"LOG_LEVEL": "***"}
    assert shown["log"] == {"lines": [], "next_offset": 0, "available": True}
    version = admin.get(f"/api/models/{sent['model_id']}/versions/v1").json()
    assert (version["state"], version["modality"]) == ("building", "image")
    async with connect(api.settings.redis_url) as redis:
        deadline = time.monotonic() + 3
        found: list[Any] = []
        while not found and time.monotonic() < deadline:
            entries = await redis.xrange(keys.BUILDS)
            found = [f for _, f in entries if f["id"] == build_id]
    assert found == [{"id": build_id}]


async def test_a_version_is_built_once(admin: httpx.Client, database: Database) -> None:
    sent = body()
    assert admin.post("/api/builds", json=sent).status_code == 202
    before = await rows(database)
    answer = admin.post("/api/builds", json=sent)
    assert (answer.status_code, answer.json()["code"]) == (409, "version_exists")
    after = await rows(database)
    assert {**after, "outbox": 0} == {**before, "outbox": 0}


def test_the_same_idempotency_key_gets_the_same_answer(admin: httpx.Client) -> None:
    sent, header = body(), {"Idempotency-Key": unique("k")}
    first = admin.post("/api/builds", json=sent, headers=header)
    second = admin.post("/api/builds", json=sent, headers=header)
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    other = admin.post("/api/builds", json=body(), headers=header)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


def test_a_failed_write_frees_its_idempotency_key(admin: httpx.Client) -> None:
    sent, header = body(), {"Idempotency-Key": unique("k")}
    assert admin.post("/api/builds", json=sent).status_code == 202
    assert admin.post("/api/builds", json=sent, headers=header).status_code == 409
    # The very same request goes through once its version is free again.
    build_id = admin.get("/api/builds", params={"model_id": sent["model_id"]}).json()["items"][0][
        "build_id"
    ]
    assert admin.post(f"/api/builds/{build_id}/cancel").status_code == 200
    assert admin.post("/api/builds", json=sent, headers=header).status_code == 202


def test_cancel_gives_the_version_back_and_repeats(admin: httpx.Client) -> None:
    sent = body()
    build_id = admin.post("/api/builds", json=sent).json()["build_id"]
    for _ in range(2):
        answer = admin.post(f"/api/builds/{build_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    path = f"/api/models/{sent['model_id']}/versions/v1"
    assert admin.get(path).json()["state"] == "draft"
    answer = admin.get(f"/api/builds/{build_id}/logs", headers={"Accept": "text/event-stream"})
    assert [e[1:] for e in parse(answer.text.split("\n"))] == [("end", {"status": "canceled"})]


async def test_a_build_that_ended_cannot_be_canceled(
    admin: httpx.Client, database: Database
) -> None:
    build_id = admin.post("/api/builds", json=body()).json()["build_id"]
    async with database.transaction() as store:
        await store.builds.move(build_id, BuildState.FAILED, error="resolving failed")
    answer = admin.post(f"/api/builds/{build_id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


def test_builds_are_listed_newest_first_in_pages(admin: httpx.Client) -> None:
    model_id = f"test/{unique('p')}"
    made = [
        admin.post("/api/builds", json=body(model_id=model_id, version=f"v{n}")).json()["build_id"]
        for n in range(5)
    ]
    seen: list[str] = []
    cursor = None
    while True:
        params = {"model_id": model_id, "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = admin.get("/api/builds", params=params).json()
        seen += [b["build_id"] for b in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]


async def _log(api: Api, build_id: str, first: int, count: int, end: str | None = None) -> None:
    async with connect(api.settings.redis_url) as redis:
        for n in range(first, first + count):
            fields = {"n": n, "t": 1.5, "step": "lock", "text": f"line {n}"}
            await redis.xadd(keys.build_log(build_id), fields, id=f"{n}-0")
        if end is not None:
            n = first + count
            fields = {"n": n, "t": 2, "step": "", "text": "", "end": end}
            await redis.xadd(keys.build_log(build_id), fields, id=f"{n}-0")


def parse(lines: Any) -> list[tuple[str, str, Any]]:
    """(id, event, data) of each event."""
    events: list[tuple[str, str, Any]] = []
    at: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            at[name] = value
        elif not line and at:
            events.append((at.get("id", ""), at["event"], json.loads(at["data"])))
            at = {}
    return events


async def test_the_log_is_followed_live_and_resumed(
    api: Api, admin: httpx.Client, database: Database
) -> None:
    build_id = admin.post("/api/builds", json=body()).json()["build_id"]
    await _log(api, build_id, 1, 3)
    async with httpx.AsyncClient(
        base_url=api.url, headers=dict(admin.headers), trust_env=False, timeout=10
    ) as client:
        headers = {"Accept": "text/event-stream"}
        async with client.stream("GET", f"/api/builds/{build_id}/logs", headers=headers) as live:
            assert live.headers["content-type"].startswith("text/event-stream")
            lines = live.aiter_lines()
            got: list[str] = []
            async for line in lines:
                got.append(line)
                if line == 'data: {"n":3,"t":1.5,"step":"lock","text":"line 3"}':
                    break
            async with database.transaction() as store:
                await store.build_queue.begin(build_id, "run", "host", BuildLimits(10_000))
                await store.builds.move(build_id, BuildState.SUCCEEDED, log_lines=5)
            await _log(api, build_id, 4, 2, end="succeeded")
            got += [line async for line in lines]
        events = parse(got)
        assert [e[2].get("text") for e in events] == [*(f"line {n}" for n in range(1, 6)), None]
        assert [e[0] for e in events] == ["1", "2", "3", "4", "5", ""]
        assert events[-1][1:] == ("end", {"status": "succeeded"})
        headers["Last-Event-ID"] = "3"
        again = await client.get(f"/api/builds/{build_id}/logs", headers=headers)
        assert [e[0] for e in parse(again.text.split("\n"))] == ["4", "5", ""]
        text = await client.get(f"/api/builds/{build_id}/logs")
        assert text.headers["content-type"].startswith("text/plain")
        assert text.text.splitlines() == [f"[lock] line {n}" for n in range(1, 6)]
    shown = admin.get(f"/api/builds/{build_id}", params={"log_offset": 3, "log_limit": 1}).json()
    assert [line["text"] for line in shown["log"]["lines"]] == ["line 4"]
    assert shown["log"]["next_offset"] == 4


async def test_the_log_of_an_old_build_comes_from_the_store(
    api: Api, admin: httpx.Client, database: Database
) -> None:
    build_id = admin.post("/api/builds", json=body()).json()["build_id"]
    rows_ = [{"n": n, "t": 1.0, "step": "s", "text": f"old {n}"} for n in range(1, 4)]
    data = "".join(json.dumps(r) + "\n" for r in rows_).encode()
    store_ = ObjectStore(api.s3)
    url = store_.put_bytes(f"{api.s3.bucket_prefix}log", f"builds/{build_id}.log", data)
    async with database.transaction() as store:
        await store.builds.move(build_id, BuildState.FAILED, log_url=url, log_lines=3, error="no")
    shown = admin.get(f"/api/builds/{build_id}", params={"log_offset": 1}).json()
    assert [line["text"] for line in shown["log"]["lines"]] == ["old 2", "old 3"]
    answer = admin.get(f"/api/builds/{build_id}/logs", headers={"Accept": "text/event-stream"})
    events = parse(answer.text.split("\n"))
    assert [e[1] for e in events] == ["log", "log", "log", "end"]
    assert events[-1][2] == {"status": "failed"}


def test_a_build_that_is_not_there(admin: httpx.Client) -> None:
    for answer in (
        admin.get(f"/api/builds/{uuid7()}"),
        admin.post(f"/api/builds/{uuid7()}/cancel"),
        admin.get(f"/api/builds/{uuid7()}/logs"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert admin.get("/api/builds/not-an-id").status_code == 422


async def test_the_papers_of_a_build(
    admin: httpx.Client, database: Database, s3_settings: S3Settings
) -> None:
    build_id = admin.post("/api/builds", json=body()).json()["build_id"]
    objects = ObjectStore(s3_settings)
    for paper in ("lock", "sbom"):
        answer = admin.get(f"/api/builds/{build_id}/{paper}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    bucket = objects.bucket(Modality.MODEL)
    lock = objects.put_bytes(bucket, f"builds/{build_id}/requirements.lock", b"numpy==2.0\n")
    sbom = objects.put_bytes(bucket, f"builds/{build_id}/sbom.cdx.json", b"{}")
    async with database.transaction() as store:
        await store.builds.update(
            UUID(build_id), lock_url=lock, sbom_url=sbom, source_commit="a" * 40,
            base_digest="sha256:b", template_hash="sha256:c",
        )  # fmt: skip
    answer = admin.get(f"/api/builds/{build_id}/lock")
    assert (answer.text, answer.headers["content-type"]) == (
        "numpy==2.0\n",
        "text/plain; charset=utf-8",
    )
    answer = admin.get(f"/api/builds/{build_id}/sbom")
    assert (answer.json(), answer.headers["content-type"]) == ({}, "application/vnd.cyclonedx+json")
    shown = admin.get(f"/api/builds/{build_id}").json()
    assert (shown["source_commit"], shown["base_digest"]) == ("a" * 40, "sha256:b")
    assert (shown["template_hash"], shown["has_sbom"]) == ("sha256:c", True)


SOURCES = [
    ({"repo": "https://evil.example/x/y"}, "invalid_input", "VYVO_SOURCE_HOSTS"),
    ({"repo": "https://github.com.evil.example/x/y"}, "invalid_input", "VYVO_SOURCE_HOSTS"),
    ({"ref": "--upload-pack=x"}, "invalid_input", "branch, a tag"),
    ({"repo": None, "ref": "main"}, "invalid_input", "name the repo too"),
    ({"weights_uri": None}, "invalid_weights_uri", "needs weights"),
    ({"template": "cog", "repo": None}, "invalid_input", "cog.yaml"),
    ({"template": "video", "repo": None}, "invalid_input", "needs a repo"),
    ({"modality": "smell"}, "invalid_input", ""),
]


@pytest.mark.parametrize(("change", "code", "said"), SOURCES, ids=lambda v: json.dumps(v)[:50])
def test_a_source_that_cannot_be_is_refused(
    admin: httpx.Client, change: dict[str, Any], code: str, said: str
) -> None:
    answer = admin.post("/api/builds", json=body(**change))
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert said in answer.json()["detail"]


def test_a_cog_build_says_what_it_makes(admin: httpx.Client) -> None:
    asked = body(template="cog", ref="v1.0.2", modality="audio", weights_uri=None)
    build_id = admin.post("/api/builds", json=asked).json()["build_id"]
    shown = admin.get(f"/api/builds/{build_id}").json()
    assert (shown["repo"], shown["ref"], shown["source_commit"]) == (asked["repo"], "v1.0.2", None)
    version = admin.get(f"/api/models/{asked['model_id']}/versions").json()["items"][0]
    assert version["modality"] == "audio"
