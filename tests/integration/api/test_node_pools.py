"""Node pools over REST, with a real api process and real agents that the local scaler starts."""

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.dispatches import Dispatch

from .own_api import OwnApi, agents, ended, operation, scale, scaled, until
from .world import Version, unique


@pytest.fixture(scope="module")
def own(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnApi]:  # fmt: skip
    api = OwnApi(
        tmp_path_factory.mktemp("own"), postgres_dsn, redis_url, s3_settings, VYVO_LOCAL_AGENTS="3"
    )
    try:
        api.start()
        yield api
    finally:
        api.close()


@pytest.fixture
def pool(own: OwnApi) -> Iterator[str]:
    name = unique("p")
    made = put(own, name)
    assert made.status_code == 200, made.text
    yield name
    if own.client.get(f"/api/node-pools/{name}").json()["size"]:
        scaled(own, name, 0)


def put(own: OwnApi, name: str, **values: Any) -> httpx.Response:
    body = {"max_size": 3, "scaler": {"kind": "local", "labels": {"zone": "z"}}, **values}
    return own.client.put(f"/api/node-pools/{name}", json=body)


def test_a_pool_grows_and_shrinks_by_real_agents(own: OwnApi, pool: str) -> None:
    done = scaled(own, pool, 2)
    assert done["plan"]["add"] == [f"{pool}-1", f"{pool}-2"]
    assert f"{pool}-1 has joined" in done["log"]
    assert set(agents(own.root)) >= {f"{pool}-1", f"{pool}-2"}
    shown = own.client.get(f"/api/node-pools/{pool}").json()
    assert (shown["size"], [m["ready"] for m in shown["members"]]) == (2, [True, True])
    nodes = {n["name"]: n for n in own.client.get("/api/nodes?limit=200").json()["items"]}
    assert nodes[f"{pool}-1"]["labels"] == {"pool": pool, "zone": "z"}
    done = scaled(own, pool, 1)
    assert done["plan"]["remove"] == [f"{pool}-2"]
    assert f"{pool}-2" not in agents(own.root)
    gone = own.client.get(f"/api/nodes/{nodes[f'{pool}-2']['id']}").json()
    assert (gone["cordoned"], gone["draining"]) == (True, True)
    # Its name comes back, and with it the node takes jobs again.
    scaled(own, pool, 2)
    again = own.client.get(f"/api/nodes/{nodes[f'{pool}-2']['id']}").json()
    assert (again["state"], again["schedulable"]) == ("ready", True)
    listed = own.client.get(f"/api/node-pools/{pool}/operations").json()["items"]
    assert [(o["from_size"], o["size"], o["status"]) for o in listed] == [
        (1, 2, "succeeded"), (2, 1, "succeeded"), (0, 2, "succeeded"),
    ]  # fmt: skip


def test_a_dry_run_tells_and_changes_nothing(own: OwnApi, pool: str) -> None:
    done = scaled(own, pool, 2, dry_run=True)
    assert done["plan"] == {
        "keep": [], "add": [f"{pool}-1", f"{pool}-2"], "remove": [],
        "start": [f"{pool}-1", f"{pool}-2"], "stop": [],
    }  # fmt: skip
    assert done["log"] == f"start agent {pool}-1\nstart agent {pool}-2\n"
    assert not {name for name in agents(own.root) if name.startswith(f"{pool}-")}
    assert own.client.get(f"/api/node-pools/{pool}").json()["size"] == 0


def test_agents_outlive_the_api_and_one_that_died_is_started_again(own: OwnApi, pool: str) -> None:
    scaled(own, pool, 2)
    before = agents(own.root)
    own.stop(signal.SIGKILL)
    os.kill(before[f"{pool}-2"], signal.SIGKILL)
    own.start()
    after = until(
        lambda: (
            (now := agents(own.root)).get(f"{pool}-2") not in {None, before[f"{pool}-2"]} and now
        )
    )
    assert after[f"{pool}-1"] == before[f"{pool}-1"]
    scaled(own, pool, 0)
    assert not {name for name in agents(own.root) if name.startswith(f"{pool}-")}


def test_an_operation_goes_on_after_the_api_was_killed_in_the_middle(
    own: OwnApi, pool: str
) -> None:
    asked = scale(own, pool, 2)
    until(lambda: f"{pool}-1" in agents(own.root), 20)
    own.stop(signal.SIGKILL)
    own.start()
    done = ended(own, pool, asked["id"], 60)
    assert done["status"] == "succeeded"
    assert [n for n in agents(own.root) if n.startswith(f"{pool}-")]
    listed = own.client.get(f"/api/node-pools/{pool}").json()["members"]
    assert [(m["name"], m["ready"]) for m in listed] == [(f"{pool}-1", True), (f"{pool}-2", True)]


async def occupy(own: OwnApi, name: str, version: Version, database: Database) -> tuple[str, UUID]:
    """Give a node a job that does not end by itself; the node's id, and the job's."""
    nodes = {n["name"]: n for n in own.client.get("/api/nodes?limit=200").json()["items"]}
    busy = nodes[name]["id"]
    ask = {"model_id": version.model_id, "version_id": version.name}
    assigned = own.client.post(f"/api/nodes/{busy}/assign", json=ask).json()
    sent = own.client.post("/api/jobs", json={"model_id": version.model_id, "input": {"digit": 1}})
    assert sent.status_code == 202, sent.text
    async with database.transaction() as store:
        placed = [Dispatch(UUID(sent.json()["job_id"]), UUID(busy), UUID(assigned["id"]))]
        (order,) = await store.dispatches.claim(placed, timedelta(seconds=60))
    return busy, order.job_id


def end_job(own: OwnApi, pool: str, node: str, job: UUID) -> None:
    stored = own.root / "pools" / pool / node / "credential.json"
    header = {"Authorization": f"Bearer {json.loads(stored.read_text())['credential']}"}
    report = {"attempt": 1, "status": "failed", "error": {"code": "x", "message": "y"}}
    told = own.client.post(f"/api/jobs/{job}/complete", json=report, headers=header)
    assert told.status_code == 200, told.text


async def test_a_drain_that_fails_after_a_restart_of_the_api_gives_the_node_back(
    own: OwnApi, pool: str, version: Version, database: Database
) -> None:
    put(own, pool, drain_seconds=4)
    scaled(own, pool, 1)
    busy, job = await occupy(own, f"{pool}-1", version, database)
    asked = scale(own, pool, 0)
    until(lambda: own.client.get(f"/api/nodes/{busy}").json()["draining"])
    own.stop(signal.SIGTERM)
    own.start()
    failed = ended(own, pool, asked["id"])
    assert failed["error"] == f"not drained within 4 s: {pool}-1 runs 1"
    assert failed["plan"]["drain"] == [f"{pool}-1"]
    assert own.client.get(f"/api/nodes/{busy}").json()["schedulable"] is True
    # A node that a person cordoned stays so.
    own.client.post(f"/api/nodes/{busy}/cordon")
    failed = ended(own, pool, scale(own, pool, 0)["id"])
    assert (failed["status"], failed["plan"]["drain"]) == ("failed", [])
    assert own.client.get(f"/api/nodes/{busy}").json()["cordoned"] is True
    end_job(own, pool, f"{pool}-1", job)


async def test_the_idle_node_leaves_and_a_busy_one_is_drained_first(
    own: OwnApi, pool: str, version: Version, database: Database
) -> None:
    put(own, pool, drain_seconds=2)
    scaled(own, pool, 2)
    busy, job = await occupy(own, f"{pool}-2", version, database)
    done = scaled(own, pool, 1)
    assert done["plan"]["remove"] == [f"{pool}-1"]
    # The last one runs a job that does not end: it is not taken away, and takes jobs again.
    failed = ended(own, pool, scale(own, pool, 0)["id"])
    assert (failed["status"], failed["error_code"]) == ("failed", "scaling_failed")
    assert failed["error"] == f"not drained within 2 s: {pool}-2 runs 1"
    assert f"{pool}-2" in agents(own.root)
    assert own.client.get(f"/api/nodes/{busy}").json()["schedulable"] is True
    # One whose job ends meanwhile leaves.
    put(own, pool, drain_seconds=30)
    asked = scale(own, pool, 0)
    until(lambda: f"{pool}-2 runs 1" in operation(own, pool, asked["id"])["log"])
    assert operation(own, pool, asked["id"])["status"] == "draining"
    end_job(own, pool, f"{pool}-2", job)
    assert ended(own, pool, asked["id"])["status"] == "succeeded"


def test_a_name_that_a_node_by_hand_has_is_passed_over(own: OwnApi, pool: str) -> None:
    boot = "01900000-0000-7000-8000-000000000001"
    has = {"hostname": "h", "cpus": 1, "memory_bytes": 1 << 30, "engine": "process",
           "agent_version": "0"}  # fmt: skip
    body = {"name": f"{pool}-1", "boot_id": boot, "labels": {}, "capabilities": has}
    token = {"Authorization": f"Bearer {own.env['VYVO_JOIN_TOKEN']}"}
    joined = own.client.post("/api/nodes/register", json=body, headers=token)
    assert joined.status_code == 200, joined.text
    header = {"Authorization": f"Bearer {joined.json()['credential']}"}
    beat = f"/api/nodes/{joined.json()['node_id']}/heartbeat"
    now = {"boot_id": boot, "sent_at": datetime.now(UTC).isoformat()}
    told = own.client.post(beat, json=now, headers=header)
    assert told.status_code == 200, told.text
    done = scaled(own, pool, 1)
    assert done["plan"]["add"] == [f"{pool}-2"]
    assert f"{pool}-1" not in agents(own.root)


def test_a_folder_that_cannot_be_made_fails_its_pool_alone(own: OwnApi, pool: str) -> None:
    other = unique("p")
    put(own, other)
    (own.root / "pools").mkdir(exist_ok=True)
    (own.root / "pools" / other).write_text("in the way")
    failed = ended(own, other, scale(own, other, 1)["id"])
    assert (failed["status"], failed["error_code"]) == ("failed", "scaling_failed")
    assert f"agent {other}-1 cannot be started" in failed["error"]
    scaled(own, pool, 1)
    (own.root / "pools" / other).unlink()
    scaled(own, other, 1)
    scaled(own, other, 0)


def test_the_log_of_an_agent_is_kept_within_bounds(own: OwnApi, pool: str) -> None:
    scaled(own, pool, 1)
    log = own.root / "pools" / pool / f"{pool}-1" / "agent.log"
    with log.open("ab") as out:
        out.truncate(17 << 20)
    until(lambda: log.stat().st_size < 1 << 20)
    assert log.with_suffix(".log.1").stat().st_size >= 17 << 20


def test_what_a_pool_may_not_be(own: OwnApi, pool: str) -> None:
    def refused(answer: httpx.Response) -> tuple[int, str]:
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        return answer.status_code, answer.json()["code"]

    client = own.client
    assert refused(put(own, "Not_A_Name")) == (422, "invalid_input")
    assert refused(put(own, pool, max_size=1, min_size=2))[0] == 422
    assert refused(put(own, pool, scaler={"kind": "cloud"}))[0] == 422
    assert refused(put(own, pool, scaler={"kind": "local", "labels": {"a\nb": "c"}}))[0] == 422
    assert refused(put(own, pool, models=["no model"])) == (422, "invalid_model_id")
    assert refused(client.get("/api/node-pools/absent")) == (404, "not_found")
    ask = {"pool": pool, "size": 9}
    assert refused(client.post("/api/node-pools/scale", json=ask)) == (422, "invalid_input")
    for odd in ({}, {"size": 1, "delta": 1}, {"size": -1}, {"size": "x"}):
        answer = client.post("/api/node-pools/scale", json={"pool": pool, **odd})
        assert refused(answer)[0] == 422
    assert refused(client.post("/api/node-pools/scale", json={**ask, "pool": "../x"}))[0] == 422
    put(own, pool, max_size=5)
    over = ended(own, pool, scale(own, pool, 4)["id"])
    assert (over["status"], over["error_code"]) == ("failed", "scaling_refused")
    assert "VYVO_LOCAL_AGENTS" in over["error"]
    scaled(own, pool, 1)
    assert refused(client.delete(f"/api/node-pools/{pool}")) == (409, "conflict")
    scaled(own, pool, 0)
    absent = "01900000-0000-7000-8000-000000000000"
    assert refused(client.get(f"/api/node-pools/{pool}/operations/{absent}"))[0] == 404
    name = unique("p")
    put(own, name)
    assert client.delete(f"/api/node-pools/{name}").status_code == 204
    assert refused(client.delete(f"/api/node-pools/{name}")) == (404, "not_found")


def test_scopes_and_one_operation_at_a_time(own: OwnApi, pool: str) -> None:
    made = own.client.post("/api/keys", json={"name": "r", "tenant": "t", "scopes": ["nodes:read"]})
    reader = {"Authorization": f"Bearer {made.json()['key']}"}
    assert own.client.get(f"/api/node-pools/{pool}", headers=reader).status_code == 200
    ask = {"pool": pool, "delta": 1}
    denied = own.client.post("/api/node-pools/scale", json=ask, headers=reader)
    assert (denied.status_code, denied.json()["code"]) == (403, "forbidden")
    once = {"Idempotency-Key": unique("k")}
    first, second = (
        own.client.post("/api/node-pools/scale", json=ask, headers=once).json() for _ in range(2)
    )
    assert first["id"] == second["id"]
    third = own.client.post("/api/node-pools/scale", json=ask)
    assert (third.status_code, third.json()["code"]) == (409, "conflict")
    ended(own, pool, first["id"])
    assert own.client.get(f"/api/node-pools/{pool}").json()["size"] == 1
