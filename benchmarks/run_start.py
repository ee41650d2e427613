"""How long from `POST /api/builds` to the first op's start: warm workers beside stock Dagster.

    python benchmarks/run_start.py [--runs 20] [--stock-runs 5]

Both paths build the same digits runner from the same api, database and code location, on servers
that this script starts in a temporary folder and stops again. They differ in what launches:

- ours: the api launches at once by GraphQL, a warm Celery worker executes;
- stock: the sensor alone launches, through Dagster's own queue and run launcher, with the settings
  that Dagster has when nothing is configured (and the same Postgres, so that storage is no
  difference).
"""

import argparse
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import psycopg
import yaml
from dagster import DagsterEventType, DagsterInstance, RunsFilter
from local_stack import process, stack
from pydantic import SecretStr

from vyvo_dagster.domain.build import BUILD
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.execution.names import BUILD_ID_TAG, CODE_LOCATION, CODE_LOCATION_MODULE
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.training.digits import TrainConfig, save_weights, train

BIN = Path(sys.executable).parent
TARGET_P50 = 0.6
WARM_UP = 3
WAIT_SECONDS = 180.0


def sqlalchemy_url(postgres_dsn: str, database: str) -> str:
    """The URL that dagster-postgres takes for another database of the same server."""
    return f"{postgres_dsn.rpartition('/')[0]}/{database}".replace(
        "postgresql://", "postgresql+psycopg2://"
    )


def dagster_home(folder: Path, postgres_url: str) -> Path:
    """A DAGSTER_HOME that sets nothing but where the storage is."""
    folder.mkdir(exist_ok=True)
    settings = {
        "storage": {"postgres": {"postgres_url": postgres_url}},
        "telemetry": {"enabled": False},
    }
    (folder / "dagster.yaml").write_text(yaml.safe_dump(settings))
    return folder


@contextmanager
def stock_dagster(folder: Path, up: Mapping[str, Any], env: Mapping[str, str]) -> Generator[None]:
    """A code server and a daemon as Dagster's own documentation starts them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = {"host": "127.0.0.1", "port": port, "location_name": CODE_LOCATION}
    workspace = folder / "workspace.yaml"
    workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
    full = {
        **os.environ,
        **env,
        "DAGSTER_HOME": str(folder),
        "VYVO_POSTGRES_DSN": up["postgres_dsn"],
        "VYVO_REDIS_URL": up["redis_url"],
    }
    code = [str(BIN / "dagster"), "api", "grpc", "-m", CODE_LOCATION_MODULE, "-h", "127.0.0.1"]
    code += ["-p", str(port), "--location-name", CODE_LOCATION]
    daemon = [str(BIN / "dagster-daemon"), "run", "-w", str(workspace)]
    with process(code, folder / "code.log", env=full):
        wait_for(lambda: listening(port))
        with process(daemon, folder / "daemon.log", env=full):
            yield


def listening(port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Any) -> Any:
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise SystemExit("it did not come about in time; see the logs in the temporary folder")


def first_op_started(instance: DagsterInstance, build_id: str) -> float | None:
    """When the first step of the build's run began, in seconds since the epoch."""
    for run in instance.get_runs(RunsFilter(tags={BUILD_ID_TAG: build_id})):
        for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_START):
            return entry.timestamp
    return None


def ended_build(client: httpx.Client, build_id: str) -> dict[str, Any] | None:
    """The build as the api shows it, once it has ended."""
    build = client.get(f"/api/builds/{build_id}").json()
    return build if build["status"] in BUILD.terminal else None


def measure(
    client: httpx.Client,
    instance: DagsterInstance,
    name: str,
    weights: str,
    runs: int,
    warm_up: int,
) -> list[float]:
    """Seconds from sending the POST to the first op's start, of `runs` builds after `warm_up` more."""
    seconds: list[float] = []
    for number in range(warm_up + runs):
        # The sensor's clock and ours must not keep step.
        time.sleep(0.3 + random.uniform(0, 1.5 if warm_up else 5.0))
        body = {
            "template": "digits-diffusion",
            "runner_name": "digits",
            "model_id": "bench/digits",
            "version": f"{name}-{number}",
            "weights_uri": weights,
            "backend": "venv",
        }
        sent = time.time()
        answer = client.post("/api/builds", json=body)
        answer.raise_for_status()
        build_id = answer.json()["build_id"]
        started = wait_for(lambda key=build_id: first_op_started(instance, key))
        build = wait_for(lambda key=build_id: ended_build(client, key))
        if build["status"] != "succeeded":
            raise SystemExit(f"build {build_id} {build['status']}: {build.get('error')}")
        if number >= warm_up:
            seconds.append(started - sent)
    return seconds


def row(name: str, seconds: list[float]) -> str:
    """One line of the table."""
    cuts = quantiles(seconds, n=20, method="inclusive")
    return (
        f"{name:<34} {len(seconds):>4} {cuts[9]:>8.3f} {cuts[18]:>8.3f} "
        f"{min(seconds):>8.3f} {max(seconds):>8.3f}"
    )


def s3_of(data_dir: Path, up: Mapping[str, Any]) -> dict[str, str]:
    """The object store's settings, as an environment."""
    secrets = json.loads((data_dir / "secrets.json").read_text())
    return {
        "VYVO_S3_ENDPOINT": up["s3"],
        "VYVO_S3_ACCESS_KEY": secrets["s3_access_key"],
        "VYVO_S3_SECRET_KEY": secrets["s3_secret_key"],
    }


def upload_weights(folder: Path, env: Mapping[str, str]) -> str:
    """Weights of a model that has learned nothing: only the start is measured."""
    path = folder / "digits.npz"
    save_weights(train(TrainConfig(epochs=1, hidden=16, layers=1, time_steps=10)), path)
    settings = S3Settings(
        endpoint=env["VYVO_S3_ENDPOINT"],
        access_key=env["VYVO_S3_ACCESS_KEY"],
        secret_key=SecretStr(env["VYVO_S3_SECRET_KEY"]),
    )
    store = ObjectStore(settings)
    store.put_file(store.bucket(Modality.MODEL), "bench/digits.npz", path)
    return f"s3://{store.bucket(Modality.MODEL)}/bench/digits.npz"


def main() -> None:
    """Measure both paths, print the table, exit 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="builds on the warm workers")
    parser.add_argument("--stock-runs", type=int, default=5, help="builds on stock Dagster")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vyvo-bench-"))
    data_dir = folder / "stack"
    try:
        with stack(data_dir, "--agents", "0") as up:
            env = s3_of(data_dir, up)
            weights = upload_weights(folder, env)
            home = dagster_home(folder / "ours", sqlalchemy_url(up["postgres_dsn"], "dagster"))
            headers = {"Authorization": f"Bearer {up['admin_key']}"}
            with (
                httpx.Client(base_url=up["api"], headers=headers, timeout=30) as client,
                DagsterInstance.from_config(str(home)) as instance,
            ):
                ours = measure(client, instance, "warm", weights, options.runs, WARM_UP)
        with stack(data_dir, "--agents", "0", "--no-dagster") as up:
            with psycopg.connect(up["postgres_dsn"], autocommit=True) as connection:
                connection.execute("create database dagster_stock")
            url = sqlalchemy_url(up["postgres_dsn"], "dagster_stock")
            home = dagster_home(folder / "stock", url)
            env |= {"VYVO_DATA_DIR": str(data_dir)}
            with (
                stock_dagster(home, up, env),
                httpx.Client(base_url=up["api"], headers=headers, timeout=30) as client,
                DagsterInstance.from_config(str(home)) as instance,
            ):
                stock = measure(client, instance, "stock", weights, options.stock_runs, 0)
    except BaseException:
        print(f"the logs are in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    print(f"seconds from POST /api/builds to the first op's start, {os.cpu_count()} cores")
    print(f"{'path':<34} {'runs':>4} {'p50':>8} {'p95':>8} {'min':>8} {'max':>8}")
    print(row("direct launch, warm Celery worker", ours))
    print(row("sensor, Dagster's stock launcher", stock))
    p50 = quantiles(ours, n=2, method="inclusive")[0]
    print(f"target: p50 at most {TARGET_P50} s: {'met' if p50 <= TARGET_P50 else 'MISSED'}")
    sys.exit(p50 > TARGET_P50)


if __name__ == "__main__":
    main()
