"""Builds asked for again, and the registry's history and comparison."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.store.database import Database

from .test_builds import body
from .world import Api

IMAGE = "127.0.0.1:5000/vyvo/x@sha256:"


async def built(admin: httpx.Client, database: Database, digest: str, **values: Any) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """A build that has succeeded, as its run leaves it: its id, and what was sent."""
    sent = body(**values)
    build_id = admin.post("/api/builds", json=sent).json()["build_id"]
    async with database.transaction() as store:
        await store.builds.update(
            UUID(build_id), state=BuildState.BUILDING, image=IMAGE + digest * 64,
            image_digest=f"sha256:{digest * 64}", lock_sha256=f"sha256:{digest * 64}",
        )  # fmt: skip
        build = await store.builds.move(UUID(build_id), BuildState.SUCCEEDED)
        assert build is not None
        await store.models.move(
            build.version_id, VersionState.READY, runner_image=build.image,
            image_digest=build.image_digest,
        )  # fmt: skip
    return build_id, sent


async def test_a_build_that_failed_is_retried_and_one_that_did_not_is_not(
    admin: httpx.Client, database: Database
) -> None:
    sent = body()
    first = admin.post("/api/builds", json=sent).json()["build_id"]
    answer = admin.post(f"/api/builds/{first}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")
    admin.post(f"/api/builds/{first}/cancel")
    header = {"Idempotency-Key": f"again-{first}"}
    again = admin.post(f"/api/builds/{first}/retry", headers=header)
    assert (again.status_code, again.json()["status"]) == (202, "queued")
    assert admin.post(f"/api/builds/{first}/retry", headers=header).json() == again.json()
    second = admin.get(f"/api/builds/{again.json()['build_id']}").json()
    assert second["env"].keys() == sent["env"].keys()
    assert [second[k] for k in ("model_id", "version", "weights_uri", "repo", "template")] == [
        sent[k] for k in ("model_id", "version", "weights_uri", "repo", "template")
    ]
    path = f"/api/models/{sent['model_id']}/versions/v1"
    assert admin.get(path).json()["state"] == "building"
    answer = admin.post(f"/api/builds/{first}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


async def test_a_version_is_rebuilt_by_one_build_at_a_time_and_stays_ready(
    admin: httpx.Client, database: Database
) -> None:
    first, sent = await built(admin, database, "a")
    path = f"/api/models/{sent['model_id']}/versions/v1"
    before = admin.get(path).json()
    again = admin.post(f"{path}/rebuild")
    assert again.status_code == 202
    build = admin.get(f"/api/builds/{again.json()['build_id']}").json()
    assert (build["rebuild_of"], build["version"]) == (before["id"], "v1")
    twice = admin.post(f"{path}/rebuild")
    assert (twice.status_code, twice.json()["code"]) == (409, "conflict")
    admin.post(f"/api/builds/{build['build_id']}/cancel")
    # A rebuild that does not succeed leaves the version as it was.
    assert admin.get(path).json() == before
    assert before["build_id"] == first
    assert admin.post(f"{path}/rebuild").status_code == 202
    draft = f"/api/models/{sent['model_id']}/versions/made-by-hand"
    admin.put(draft, json={"modality": "image"})
    answer = admin.post(f"{draft}/rebuild")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert admin.post(f"/api/models/{sent['model_id']}/versions/none/rebuild").status_code == 404


async def test_the_history_says_what_was_done_and_by_whom(
    admin: httpx.Client, database: Database
) -> None:
    _, sent = await built(admin, database, "a")
    model = f"/api/models/{sent['model_id']}"
    await built(admin, database, "b", model_id=sent["model_id"], version="v2")
    for version in ("v1", "v2"):
        assert admin.post(f"{model}/promote", json={"version": version}).status_code == 200
    admin.post(f"{model}/rollback")
    admin.patch(f"{model}/versions/v2", json={"state": "retired"})
    # A model whose name goes on where this one ends has a history of its own.
    await built(admin, database, "c", model_id=f"{sent['model_id']}0")
    found = admin.get(f"{model}/history").json()["items"]
    assert [(e["action"], e["version"]) for e in found] == [
        ("version_update", "v2"), ("rollback", "v1"), ("promote", "v2"), ("promote", "v1"),
        ("build", "v2"), ("build", "v1"),
    ]  # fmt: skip
    assert len({e["by"] for e in found}) == 1
    page = admin.get(f"{model}/history", params={"limit": 4}).json()
    rest = admin.get(f"{model}/history", params={"cursor": page["next_cursor"]}).json()
    assert page["items"] + rest["items"] == found


async def test_two_versions_are_compared_and_no_value_of_env_is_shown(
    api: Api, admin: httpx.Client, database: Database
) -> None:
    first, sent = await built(admin, database, "a", env={"A": "secret-1", "B": "same"})
    second, _ = await built(
        admin, database, "b", model_id=sent["model_id"], version="v2",
        env={"A": "secret-2", "B": "same", "C": "new"},
    )  # fmt: skip
    objects = ObjectStore(api.s3)
    locks = {
        first: "cog==0.23.1 \\\n    --hash=sha256:0\nOld_Thing==1\n",
        second: "cog==0.23.2 \\\nnumpy==2.1\n",
    }
    for build_id, lock in locks.items():
        key = f"builds/{build_id}/requirements.lock"
        url = objects.put_bytes(objects.bucket(Modality.MODEL), key, lock.encode())
        async with database.transaction() as store:
            await store.builds.update(UUID(build_id), lock_url=url)
    path = f"/api/models/{sent['model_id']}/diff"
    answer = admin.get(path, params={"from": "v1", "to": "v2"})
    found = answer.json()
    assert found["packages"] == {
        "added": {"numpy": "2.1"}, "removed": {"old-thing": "1"},
        "changed": {"cog": ["0.23.1", "0.23.2"]},
    }  # fmt: skip
    assert found["env"] == {"added": {"C": "***"}, "removed": {}, "changed": {"A": ["***", "***"]}}
    assert "secret" not in answer.text
    assert found["fields"]["image_digest"] == [f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"]
    assert "template" not in found["fields"]
    assert not found["same"]
    same = admin.get(path, params={"from": "v1", "to": "v1"}).json()
    assert same["same"] is True
    assert admin.get(path, params={"from": "v1", "to": "v9"}).status_code == 404


@pytest.mark.parametrize("call", ["retry", "cancel"])
def test_what_another_tenant_built_is_not_found(api: Api, admin: httpx.Client, call: str) -> None:
    build_id = admin.post("/api/builds", json=body()).json()["build_id"]
    key = admin.post("/api/keys", json={"name": "other", "tenant": "other", "scopes": ["builds:read", "builds:write"]}).json()["key"]  # fmt: skip
    with api.client(key) as other:
        assert other.post(f"/api/builds/{build_id}/{call}").status_code == 404
