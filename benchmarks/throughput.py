"""Jobs per second from submission to the row that says they have ended, beside plain task queues.

    python benchmarks/throughput.py [--jobs 20000] [--rival-jobs 5000] [--without-rivals]

Ours is the whole stack as `vyvo up` starts it: api, orchestrator and agent, one process each,
Postgres with fsync, the stream server with its append-only file; jobs come by POST /api/jobs/batch
from two clients and run on a `noop://` version, which answers its input. A job counts from the
creation of the first row to the end of the last, by Postgres' clock. The others keep nothing but
what the same stream server holds: Celery and taskiq (two worker processes, results kept there) and
a bare loop over one stream. taskiq is installed into a temporary environment.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import redis
from local_stack import process, stack

HERE: Final = Path(__file__).parent
RIVALS: Final = HERE / "rivals"
BATCH: Final = 200
CLIENTS: Final = 2
SLOTS: Final = 2048
WAIT_SECONDS: Final = 300.0
GOAL: Final = 2.5
WARM_UP: Final = 400
MODEL: Final = "bench/noop"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rival-jobs", type=int, default=5_000)
    parser.add_argument("--without-rivals", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vyvo-throughput-") as folder:
        home = Path(folder)
        with noop_stack(home / "data") as up:
            ours = whole_stack(up, given.jobs)
            print(f"vyvo: {ours:,.0f} jobs/s", flush=True)
            rows = [("vyvo, whole stack", given.jobs, ours)]
            if not given.without_rivals:
                rows += rivals(home, str(up["redis_url"]), given.rival_jobs)
    table(rows)


def whole_stack(up: Mapping[str, Any], count: int) -> float:
    """Jobs per second through the api, Postgres, the streams, the orchestrator and the agent."""
    headers = {"Authorization": f"Bearer {up['admin_key']}"}
    with httpx.Client(base_url=up["api"], headers=headers, timeout=60, trust_env=False) as client:
        version = {"modality": "text", "runner_image": "noop://throughput"}
        client.put(f"/api/models/{MODEL}/versions/v1", json=version).raise_for_status()
        (node,) = client.get("/api/nodes").json()["items"]
        body = {"model_id": MODEL, "version_id": "v1"}
        client.post(f"/api/nodes/{node['id']}/assign", json=body).raise_for_status()
        wait_for(lambda: assigned(client, node["id"]))
        with psycopg.connect(up["postgres_dsn"], autocommit=True) as database:
            submit(up["api"], headers, WARM_UP)
            wait_for(lambda: ended(database) == WARM_UP)
            database.execute("delete from job_attempts; delete from jobs")
            submit(up["api"], headers, count)
            # Each look reads every row, and the rate is by the rows' own times.
            wait_for(lambda: ended(database) == count, 1.0)
            query = "select extract(epoch from max(completed_at) - min(created_at)) from jobs"
            row = database.execute(query).fetchone()
    assert row is not None
    return count / float(row[0])


def assigned(client: httpx.Client, node_id: str) -> bool:
    """Whether the node has the version loaded."""
    node = client.get(f"/api/nodes/{node_id}").json()
    return [a["state"] for a in node["assignments"]] == ["ready"]


def ended(database: "psycopg.Connection[Any]") -> int:
    """How many jobs have succeeded."""
    row = database.execute("select count(*) from jobs where state = 'succeeded'").fetchone()
    assert row is not None
    return int(row[0])


def submit(url: str, headers: Mapping[str, str], count: int) -> None:
    """Submit jobs in batches from two clients at a time."""
    share = count // CLIENTS
    threads = [
        threading.Thread(target=submit_some, args=(url, headers, share)) for _ in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def submit_some(url: str, headers: Mapping[str, str], count: int) -> None:
    """One client's share."""
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        for start in range(0, count, BATCH):
            jobs = [
                {"model_id": MODEL, "input": {"n": n}}
                for n in range(start, min(start + BATCH, count))
            ]
            client.post("/api/jobs/batch", json={"jobs": jobs}).raise_for_status()


def rivals(home: Path, redis_url: str, count: int) -> list[tuple[str, int, float]]:
    """The same number of no-op tasks through each of the others, on the same stream server."""
    python = sys.executable
    celery = [python, "-m", "celery", "-A", "celery_app", "worker", "-P", "prefork", "-c", "2"]
    found = [
        (
            "Celery, prefork 2",
            [*celery, "-Q", "rival", "-l", "WARNING"],
            [python, "celery_app.py", str(count)],
            count,
        )
    ]
    other = taskiq_python(home)
    worker = [
        other,
        "-m",
        "taskiq",
        "worker",
        "taskiq_app:broker",
        "--workers",
        "2",
        "--log-level",
        "WARNING",
    ]
    found.append(("taskiq streams, 2 workers", worker, [other, "taskiq_app.py", str(count)], count))
    for batch, many in ((100, count * 8), (1, count)):
        name = f"bare stream, {'one by one' if batch == 1 else f'batches of {batch}'}"
        sender = [python, "raw_stream.py", "send", str(many), str(batch)]
        found.append((name, [python, "raw_stream.py", "worker", str(batch)], sender, many))
    rows: list[tuple[str, int, float]] = []
    for name, work, send, many in found:
        rate = rival(home, redis_url, work, send, many)
        print(f"{name}: {rate:,.0f} tasks/s", flush=True)
        rows.append((name, many, rate))
    return rows


def rival(home: Path, redis_url: str, work: list[str], send: list[str], count: int) -> float:
    """Tasks per second from the first sent to the last result kept."""
    base = redis_url.rpartition("/")[0]
    urls = {"BROKER_URL": f"{base}/8", "RESULT_URL": f"{base}/9"}
    with (
        redis.Redis.from_url(urls["BROKER_URL"]) as broker,
        redis.Redis.from_url(urls["RESULT_URL"]) as results,
    ):
        broker.flushdb()
        results.flushdb()
        env = {**os.environ, **urls, "PYTHONPATH": str(RIVALS)}
        with process(work, home / "rival.log", env=env, cwd=RIVALS):
            time.sleep(5)  # Workers say in ways of their own that they are ready.
            began = time.monotonic()
            with process(send, home / "sender.log", env=env, cwd=RIVALS):
                wait_for(lambda: int(results.dbsize()) >= count, 0.01)
            took = time.monotonic() - began
        broker.flushdb()
        results.flushdb()
    return count / took


def taskiq_python(home: Path) -> str:
    """The interpreter of an environment that has taskiq."""
    python = home / "taskiq" / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    packages = ["taskiq==0.13.*", "taskiq-redis", "hiredis", "uvloop"]
    env = {"UV_SYSTEM_CERTS": "1", **os.environ}
    subprocess.run([*uv, "venv", "-q", str(home / "taskiq")], check=True, env=env)
    subprocess.run([*uv, "pip", "install", "-q", "-p", str(python), *packages], check=True, env=env)
    return str(python)


def table(rows: list[tuple[str, int, float]]) -> None:
    """Print rates and what each is of the others."""
    ours = rows[0][2]
    print(f"\n{'':28} {'jobs':>8} {'per second':>11} {'vyvo is':>9}")
    for name, count, rate in rows:
        print(f"{name:28} {count:8,} {rate:11,.0f} {ours / rate:8.2f}x")
    print(
        f"\nvyvo: batches of {BATCH} from {CLIENTS} clients, reports in batches of up to 1,024; every job is"
        "\na row, an attempt and events, committed with fsync. The others: append-only file, no database."
    )
    celery = next((rate for name, _, rate in rows if name.startswith("Celery")), None)
    if celery is not None and ours < GOAL * celery:
        raise SystemExit(f"less than {GOAL} x Celery")


def noop_stack(data_dir: Path) -> AbstractContextManager[dict[str, Any]]:
    """A stack without Dagster, with one agent that takes no-op versions."""
    env = {"VYVO_AGENT_ALLOW_NOOP": "1", "VYVO_AGENT_SLOTS": str(SLOTS)}
    return stack(data_dir, "--no-dagster", "--agents", "1", env=env)


def wait_for(condition: Callable[[], bool], pause: float = 0.1) -> None:
    """Return once `condition` is true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("it did not come about in time")
        time.sleep(pause)


if __name__ == "__main__":
    main()
