"""Twenty builds at once on a whole stack with two workers, one of which is killed in the middle of one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.e2e.stack import TEMPLATE, RunningStack, running, until
from vyvo_dagster.client import Client
from vyvo_dagster.training.digits import TrainConfig, save_weights, train

# A whole stack and builds on both cores: not beside another.
pytestmark = pytest.mark.xdist_group("dagster-stack")

ROOT = Path(__file__).resolve().parents[2]
BUILDS, LIMIT = 20, 2
AT_WORK = "state in ('building', 'pushing')"
MATERIALIZATIONS = """query($key: AssetKeyInput!, $partitions: [String!]) {
  assetOrError(assetKey: $key) { ... on Asset { assetMaterializations(partitions: $partitions) {
    runId } } } }"""
RUNS = """query($filter: RunsFilter!) { runsOrError(filter: $filter) {
  ... on Runs { results { runId status } } } }"""

BACKFILL = """mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) { __typename
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    save_weights(train(TrainConfig(epochs=1, hidden=16, layers=1, time_steps=10)), path)
    return path


def environment_of(pid: int) -> dict[str, str]:
    """What a process of ours was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(os.fsdecode(pair).split("=", 1) for pair in pairs if b"=" in pair)


@contextlib.contextmanager
def second_host(env: dict[str, str], folder: Path) -> "Generator[subprocess.Popen[bytes]]":
    """A worker of another build host: a data directory of its own, and one build at a time."""
    env = {**env, "VYVO_BUILD_HOST": "second", "VYVO_DATA_DIR": str(folder / "data")}
    argv = [sys.executable, "-m", "celery", "-A", "vyvo_dagster.execution.celery_app", "worker"]
    argv += ["--pool", "prefork", "--concurrency", "1", "-Q", "dagster", "--hostname", "second@%h"]
    argv += ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    folder.mkdir()
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            argv, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(
            lambda: b" ready." in (folder / "worker.log").read_bytes(), 120, "the worker is ready"
        )
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(10)


class Rows:
    """The rows of the builds, looked at from outside."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection
        self.most_at_work = 0

    def all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        (at_work,) = self._connection.execute(
            f"select count(*) from runner_builds where {AT_WORK}"
        ).fetchone() or (0,)
        self.most_at_work = max(self.most_at_work, at_work)
        return self._connection.execute(query, values).fetchall()  # type: ignore[arg-type]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningStack]:
    monkeypatch.setenv("VYVO_BUILDS_PER_TEMPLATE", json.dumps({"*": LIMIT}))
    monkeypatch.setenv("VYVO_BUILD_HOST", "first")
    with running(tmp_path / "data", "--engine", "process", "--agents", "0") as made:
        yield made


def killed_in_the_middle(rows: Rows, worker: "subprocess.Popen[bytes]") -> UUID:
    """Kill the second host's worker while it executes a build; that build."""
    deadline = time.monotonic() + 240
    query = f"select id, run_id from runner_builds where host = 'second' and {AT_WORK}"
    while time.monotonic() < deadline:
        # One whose image is being made.
        for id_, run_id in rows.all(f"{query} and backend_used is not null"):
            os.killpg(worker.pid, signal.SIGSTOP)
            if rows.all(f"{query} and id = %s", id_) == [(id_, run_id)]:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait(10)
                return id_
            os.killpg(worker.pid, signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("the second host executed no build")


def overlapping(spans: list[tuple[float, float]]) -> int:
    """The most spans that have a moment in common."""
    return max(sum(start <= at < end for start, end in spans) for at, _ in spans)


def assert_taken_over_once(stack: RunningStack, client: Client, id_: UUID) -> None:
    build = client.build(id_)
    assert (build.status, build.attempt, build.host) == ("succeeded", 2, "first")
    said = [event.data for event in client.build_log(id_) if event.kind == "log"]
    assert [line["n"] for line in said] == list(range(1, len(said) + 1))
    queue = [line["text"] for line in said if line["step"] == "queue"]
    assert queue[0].startswith("begun on second")
    assert queue[1:] == ["the worker that had the build is gone; first goes on with it (attempt 2)"]
    name = f"{build.model_id} {build.version} is ready with {build.image}"
    assert [line["text"] for line in said].count(name) == 1
    partition = f"{build.model_id}@{build.version}"
    for asset in ("runner_image", "model_version"):
        found = stack.graphql(MATERIALIZATIONS, key={"path": [asset]}, partitions=[partition])
        assert len(found["assetOrError"]["assetMaterializations"]) == 1
    tags = [{"key": "vyvo/build_id", "value": str(id_)}]
    runs = stack.graphql(RUNS, filter={"tags": tags})["runsOrError"]["results"]
    assert sorted(run["status"] for run in runs) == ["FAILURE", "SUCCESS"]


def assert_a_backfill_rebuilds(
    stack: RunningStack, client: Client, rows: Rows, ids: list[UUID]
) -> None:
    """What a person does in Dagster's UI with several models at once: equal digests change nothing."""
    before = [client.build(id_) for id_ in ids]
    versions = [client.version(build.model_id, build.version) for build in before]
    params = {
        "assetSelection": [{"path": [name]} for name in ("model_weights", "runner_image", "model_version")],
        "partitionNames": [f"{build.model_id}@{build.version}" for build in before],
    }  # fmt: skip
    asked = stack.graphql(BACKFILL, params=params)["launchPartitionBackfill"]
    assert asked["__typename"] == "LaunchBackfillSuccess", asked
    query = (
        "select model_id, state, unchanged from runner_builds where rebuild_of is not null"
        " and finished_at is not null order by created_at"
    )
    until(lambda: len(rows.all(query)) == len(ids), 300, "the backfill's builds have ended")
    assert sorted(rows.all(query)) == sorted(
        (build.model_id, "succeeded", True) for build in before
    )
    assert [client.version(build.model_id, build.version) for build in before] == versions


def test_twenty_builds_at_once_and_a_worker_that_is_killed(
    stack: RunningStack, tmp_path: Path, weights: Path
) -> None:
    env = environment_of(stack.said["pids"]["worker"])
    with (
        stack.client() as client,
        second_host(env, tmp_path / "second") as worker,
        psycopg.connect(stack.said["postgres_dsn"], autocommit=True) as connection,
    ):
        rows, uri = Rows(connection), stack.upload_weights(weights)
        ids = [
            client.submit_build(
                {
                    "template": TEMPLATE, "runner_name": "digits", "model_id": f"e2e/queue-{n}",
                    "version": "v1", "weights_uri": uri,
                }
            ).build_id
            for n in range(BUILDS)
        ]  # fmt: skip
        killed = killed_in_the_middle(rows, worker)
        deadline = time.monotonic() + 480
        while rows.all("select 1 from runner_builds where finished_at is null"):
            assert time.monotonic() < deadline, rows.all("select id, state from runner_builds")
            time.sleep(0.05)
        ended = rows.all(
            "select id, state, attempt, extract(epoch from started_at)::float,"
            " extract(epoch from finished_at)::float from runner_builds order by created_at, id"
        )
        assert [row[0] for row in ended] == ids
        assert {row[1] for row in ended} == {"succeeded"}
        assert {row[0]: row[2] for row in ended} == {id_: 1 + (id_ == killed) for id_ in ids}
        assert rows.most_at_work == LIMIT
        assert overlapping([(row[3], row[4]) for row in ended]) == LIMIT
        begun = [row[3] for row in ended]
        for n, at in enumerate(begun):
            # Those that are launched together may begin in either order.
            assert sum(earlier > at for earlier in begun[:n]) < LIMIT
        assert_taken_over_once(stack, client, killed)
        assert_a_backfill_rebuilds(stack, client, rows, ids[-2:])
    # No process of the killed worker's is left.
    until(
        lambda: not leftovers(tmp_path / "second"), 30, "what the killed worker started has ended"
    )


def leftovers(folder: Path) -> list[str]:
    """Processes that work in a folder, or run what is in it."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            if str(folder) in command or str((entry / "cwd").readlink()).startswith(str(folder)):
                found.append(f"{entry.name} {command}")
    return found
