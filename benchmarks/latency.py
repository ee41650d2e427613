"""Milliseconds from asking for one prediction to its start on an idle system, beside Celery.

    python benchmarks/latency.py [--jobs 300]

Ours is the whole stack as `vyvo up` starts it (api, orchestrator and agent, Postgres with fsync, the
stream server with its append-only file) with a `noop://` version: from before POST /api/jobs is sent
to the moment at which the runner is asked. Celery has the same stream server as broker and result
backend and two prefork workers: from before `delay()` to the first line of the task. One at a time;
the next one is sent when the last has ended.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from local_stack import process
from throughput import RIVALS, assigned, noop_stack, wait_for

GOAL_MS: Final = 8.0
WARM_UP: Final = 50
MODEL: Final = "bench/latency"


def main() -> None:
    """Measure, print the table, exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vyvo-latency-") as folder:
        home = Path(folder)
        with noop_stack(home / "data") as up:
            ours = whole_stack(up, given.jobs)
            rows = {
                "vyvo, POST to start": ours,
                "Celery, delay to start": celery(home, str(up["redis_url"]), given.jobs),
            }
    print(f"{'milliseconds':24} {'p50':>7} {'p99':>7}")
    for name, took in rows.items():
        print(f"{name:24} {1000 * statistics.median(took):7.2f} {1000 * percentile(took, 99):7.2f}")
    if 1000 * statistics.median(ours) > GOAL_MS:
        raise SystemExit(f"p50 is more than {GOAL_MS:g} ms")


def whole_stack(up: Mapping[str, Any], count: int) -> list[float]:
    """Seconds from POST to the runner's start."""
    headers = {"Authorization": f"Bearer {up['admin_key']}"}
    took: list[float] = []
    with (
        httpx.Client(base_url=up["api"], headers=headers, timeout=30, trust_env=False) as client,
        psycopg.connect(up["postgres_dsn"], autocommit=True) as database,
    ):
        version = {"modality": "text", "runner_image": "noop://latency"}
        client.put(f"/api/models/{MODEL}/versions/v1", json=version).raise_for_status()
        (node,) = client.get("/api/nodes").json()["items"]
        body = {"model_id": MODEL, "version_id": "v1"}
        client.post(f"/api/nodes/{node['id']}/assign", json=body).raise_for_status()
        wait_for(lambda: assigned(client, node["id"]))
        for n in range(WARM_UP + count):
            sent = time.time()
            answer = client.post("/api/jobs", json={"model_id": MODEL, "input": {"clock": 0}})
            job_id = answer.raise_for_status().json()["job_id"]
            time.sleep(0.03)  # Nothing looks on while it is on its way.
            began = start_of(database, job_id)
            if n >= WARM_UP:
                took.append(began - sent)
    return took


def start_of(database: "psycopg.Connection[Any]", job_id: str) -> float:
    """When the prediction of a job that has ended began, in seconds of the epoch."""
    query = "select output ->> 'clock' from jobs where id = %s and state = 'succeeded'"
    wait_for(lambda: database.execute(query, (job_id,)).fetchone() is not None, 0.01)
    row = database.execute(query, (job_id,)).fetchone()
    assert row is not None
    return float(row[0])


def celery(home: Path, redis_url: str, count: int) -> list[float]:
    """Seconds from `delay()` to the task's start."""
    base = redis_url.rpartition("/")[0]
    urls = {"BROKER_URL": f"{base}/8", "RESULT_URL": f"{base}/9", "PYTHONPATH": str(RIVALS)}
    env = {**os.environ, **urls}
    worker = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-P", "prefork"]
    worker += ["-c", "2", "-Q", "rival", "-l", "WARNING"]
    with process(worker, home / "celery.log", env=env, cwd=RIVALS):
        time.sleep(5)  # It says in ways of its own that it is ready.
        argv = [sys.executable, "celery_app.py", "latency", str(WARM_UP + count)]
        done = subprocess.run(
            argv, env=env, cwd=RIVALS, capture_output=True, text=True, check=True, timeout=300
        )
    return [float(seconds) for seconds in json.loads(done.stdout)][WARM_UP:]


def percentile(values: list[float], percent: int) -> float:
    """The value below which `percent` of the values are."""
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    main()
