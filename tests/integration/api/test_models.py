"""The registry over HTTP: versions made elsewhere, promotion, rollback."""

from typing import Any

import httpx

from .world import Api, Version, unique

IMAGE = "registry.local:5000/vyvo/x@sha256:" + "a" * 64


def put(admin: httpx.Client, model_id: str, version: str, **values: Any) -> httpx.Response:
    body = {"modality": "image", "runner_image": IMAGE, **values}
    return admin.put(f"/api/models/{model_id}/versions/{version}", json=body)


def test_a_model_is_registered_described_and_listed(admin: httpx.Client) -> None:
    model_id = f"test/{unique('a')}"
    made = admin.post("/api/models", json={"model_id": model_id, "description": "first"})
    assert (made.status_code, made.json()["tenant"]) == (201, "admin")
    path = f"/api/models/{model_id}"
    assert admin.patch(path, json={"description": "second"}).json()["description"] == "second"
    assert admin.get(path).json()["description"] == "second"
    after = f"{model_id[:-1]}"
    page = admin.get("/api/models", params={"cursor": after, "limit": 1}).json()
    assert page["items"][0]["model_id"] == model_id
    bad = admin.post("/api/models", json={"model_id": "a/../b"})
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_model_id")
    assert admin.get(f"/api/models/test/{unique('none')}").status_code == 404
    assert admin.get("/api/models/a/%2e%2e").status_code in {404, 422}
    assert admin.get("/api/models/a/b%00c").status_code == 422


def test_a_version_made_elsewhere_is_ready_by_its_digest(api: Api, admin: httpx.Client) -> None:
    model_id = f"test/{unique('e')}"
    weights = f"s3://{api.s3.bucket_prefix}model/weights/sha256/" + "b" * 64
    made = put(admin, model_id, "v1", weights_url=weights, env={"A": "secret"}).json()
    assert (made["state"], made["image_digest"]) == ("ready", "sha256:" + "a" * 64)
    assert made["weights_sha256"] == "sha256:" + "b" * 64
    assert made["env"] == {"A": "***"}
    again = put(admin, model_id, "v1", weights_url=weights, env={"A": "secret"})
    assert (again.status_code, again.json()["id"]) == (200, made["id"])
    other = put(admin, model_id, "v1")
    assert (other.status_code, other.json()["code"]) == (409, "version_exists")
    assert put(admin, model_id, "v0", runner_image=None).json()["state"] == "draft"
    listed = admin.get(f"/api/models/{model_id}/versions").json()["items"]
    assert [v["version"] for v in listed] == ["v0", "v1"]


def test_versions_that_are_refused(admin: httpx.Client) -> None:
    model_id = f"test/{unique('r')}"
    for values, code in (
        ({"runner_image": "x:latest"}, "invalid_input"),
        ({"weights_url": "s3://elsewhere/weights"}, "invalid_input"),
        ({"weights_url": "file:///etc/passwd"}, "invalid_input"),
        ({"env": {"A": "x\ny"}}, "invalid_env"),
        ({"input_schema": {"type": "no-such-type"}}, "invalid_input"),
        ({"modality": "log"}, "invalid_input"),
    ):
        answer = put(admin, model_id, "v1", **values)
        assert (answer.status_code, answer.json()["code"]) == (422, code), values
    assert put(admin, model_id, "v1@x").status_code == 422
    assert admin.get(f"/api/models/{model_id}").status_code == 404


def test_promotion_and_rollback(admin: httpx.Client) -> None:
    model_id = f"test/{unique('p')}"
    for version in ("v1", "v2", "v3"):
        put(admin, model_id, version)

    def states() -> dict[str, str]:
        items = admin.get(f"/api/models/{model_id}/versions").json()["items"]
        return {v["version"]: v["state"] for v in items}

    def promote(version: str) -> int:
        path = f"/api/models/{model_id}/promote"
        return admin.post(path, json={"version": version}).status_code

    def rollback() -> int:
        return admin.post(f"/api/models/{model_id}/rollback").status_code

    assert rollback() == 409
    assert [promote(v) for v in ("v1", "v2", "v2", "v3")] == [200] * 4
    assert states() == {"v1": "ready", "v2": "ready", "v3": "active"}
    assert rollback() == 200
    assert states()["v2"] == "active"
    assert rollback() == 200
    assert states() == {"v1": "active", "v2": "ready", "v3": "ready"}
    assert rollback() == 409
    put(admin, model_id, "v4", runner_image=None)
    assert promote("v4") == 409
    assert promote("v9") == 404
    # New jobs go to the active version.
    body = {"model_id": model_id, "input": {}}
    job_id = admin.post("/api/jobs", json=body).json()["job_id"]
    assert admin.get(f"/api/jobs/{job_id}").json()["version"] == "v1"


def test_a_version_is_changed_and_retired(admin: httpx.Client, version: Version) -> None:
    path = f"/api/models/{version.model_id}/versions/draft"
    assert admin.put(path, json={"modality": "image"}).json()["state"] == "draft"
    changed = admin.patch(path, json={"resources": {"gpu_memory_bytes": 5}, "env": {"B": "c"}})
    assert changed.json()["resources"] == {
        "gpu_memory_bytes": 5,
        "memory_bytes": 0,
        "timeout_seconds": 0,
    }
    assert changed.json()["env"] == {"B": "***"}
    path = f"/api/models/{version.model_id}/versions/v1"
    for sent in ({"env": {"B": "c"}}, {"resources": {"gpu_memory_bytes": 5}}):
        answer = admin.patch(path, json=sent)
        assert (answer.status_code, answer.json()["code"]) == (409, "version_immutable")
    for _ in range(2):
        assert admin.patch(path, json={"state": "retired"}).json()["state"] == "retired"
    answer = admin.patch(path, json={"env": {}})
    assert (answer.status_code, answer.json()["code"]) == (409, "version_immutable")
