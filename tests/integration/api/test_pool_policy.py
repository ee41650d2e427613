"""A pool that follows its queue from end to end: sensor, api, scaler, agents, jobs, and back."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, build_sensor_context

from resources import StoreResource
from sensors.pools import node_pools
from tests.conftest import own_redis
from vyvo_dagster.settings import S3Settings

from .own_api import OwnApi, agents, ended, scale, until

POOL, MODEL = "gpu", "acme/sleeper"


@pytest.fixture
def own(
    make_database: Callable[[str], str], s3_settings: S3Settings, tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnApi]:  # fmt: skip
    """An api and an orchestrator with servers of their own, since a policy acts on every pool."""
    with own_redis(tmp_path_factory) as redis_url:
        api = OwnApi(
            tmp_path, make_database("migrated"), redis_url, s3_settings,
            VYVO_LOCAL_AGENTS="3", VYVO_AGENT_ALLOW_NOOP="1",
        )  # fmt: skip
        with (tmp_path / "orchestrator.log").open("wb") as log:
            orchestrator = subprocess.Popen(
                [sys.executable, "-m", "vyvo_dagster.cli", "orchestrator"], env=api.env,
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            api.start()
            yield api
        finally:
            orchestrator.send_signal(signal.SIGTERM)
            orchestrator.wait(30)
            api.close()


def put(own: OwnApi, **values: Any) -> None:
    body = {"max_size": 2, "queue_depth_target": 2, "models": [MODEL], "drain_seconds": 30,
            "scaler": {"kind": "local"}, **values}  # fmt: skip
    answer = own.client.put(f"/api/node-pools/{POOL}", json=body)
    assert answer.is_success, answer.text


def tick(own: OwnApi) -> str:
    """One evaluation of the sensor, as Dagster's daemon makes it."""
    store = StoreResource(dsn=own.env["VYVO_POSTGRES_DSN"])
    with (
        DagsterInstance.ephemeral() as instance,
        build_sensor_context(instance=instance, resources={"store": store}) as context,
    ):
        said = node_pools.evaluate_tick(context).skip_message or ""
    store.close()
    return said


def changed(own: OwnApi) -> dict[str, Any]:
    """The pool's latest operation, once it has succeeded."""
    (last, *_) = own.client.get(f"/api/node-pools/{POOL}/operations").json()["items"]
    done = ended(own, POOL, last["id"], 60)
    assert done["status"] == "succeeded", done
    return done


def test_a_queue_brings_agents_and_its_end_takes_them_after_the_cool_down(own: OwnApi) -> None:
    put(own, cool_down_seconds=3600)
    assert own.client.post("/api/models", json={"model_id": MODEL}).is_success
    version = {"modality": "text", "runner_image": "noop://sleeper"}
    assert own.client.put(f"/api/models/{MODEL}/versions/v1", json=version).is_success
    assert tick(own) == "gpu stays at 0: 0 jobs wait for 0 nodes, 0 of them busy"

    job = {"model_id": MODEL, "input": {"sleep_seconds": 2}}
    answer = own.client.post("/api/jobs/batch", json={"jobs": [job] * 5})
    assert answer.status_code == 202, answer.text
    jobs = [each["job_id"] for each in answer.json()["jobs"]]
    plan = ended(own, POOL, scale(own, POOL, 2, dry_run=True)["id"])
    assert plan["plan"]["start"] == ["gpu-1", "gpu-2"]
    assert agents(own.root) == {}
    assert tick(own) == "gpu from 0 to 2: 5 jobs wait, 2 are meant for a node"
    assert changed(own)["requested_by"] == "policy"
    assert set(agents(own.root)) == {"gpu-1", "gpu-2"}

    def over() -> bool:
        return all(
            own.client.get(f"/api/jobs/{id_}").json()["status"] == "succeeded" for id_ in jobs
        )

    until(over, 60)
    assert tick(own).startswith("gpu stays at 2: cooling down for 3")
    assert set(agents(own.root)) == {"gpu-1", "gpu-2"}
    # The cool-down is over.
    put(own, cool_down_seconds=0)
    for size in (1, 0):
        assert tick(own).startswith(f"gpu from {size + 1} to {size}: 0 jobs wait and ")
        assert len(changed(own)["plan"]["keep"]) == size
        assert len(agents(own.root)) == size
    assert tick(own) == "gpu stays at 0: 0 jobs wait for 0 nodes, 0 of them busy"
    assert own.client.get(f"/api/node-pools/{POOL}").json()["size"] == 0
