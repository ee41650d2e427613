"""`vyvo nodes` as a process, against the real api and an agent that is played."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from vyvo_dagster.store.database import Database

from .test_cli import Cli
from .test_nodes import submit
from .world import Agent, Api, Version, dispatch, load


@pytest.fixture
def cli(api: Api, tmp_path: Path) -> Cli:
    return Cli(api, tmp_path)


def eventually(act: Callable[[], object]) -> threading.Thread:
    """Do it a little later, beside what waits for it."""

    def later() -> None:
        time.sleep(1.5)
        act()

    thread = threading.Thread(target=later)
    thread.start()
    return thread


def test_what_an_operator_sees_and_switches(cli: Cli, agent: Agent, version: Version) -> None:
    agent.register(gpus=[{"index": 0, "uuid": "GPU-0", "name": "H100", "memory_bytes": 80 << 30}])
    agent.beat()
    listed = cli.json("nodes", "ls", "--limit", 200)["items"]
    assert agent.name in {node["name"] for node in listed}
    row = next(
        line for line in cli.run("nodes", "ls", "--limit", 200).stdout.splitlines()
        if line.startswith(agent.name)
    )  # fmt: skip
    assert row.split()[1:] == ["ready", *row.split()[2:5], "1", "0/0", "ready", "-"]
    shown = cli.run("nodes", "show", agent.name).stdout
    assert "GPU      0: H100, 80.0 GiB" in shown
    assert cli.json("nodes", "show", agent.id)["name"] == agent.name
    for verb, said in (
        ("cordon", "ready, cordoned"), ("drain", "jobs left"), ("uncordon", "ready"),
    ):  # fmt: skip
        ran = cli.run("nodes", verb, agent.name)
        assert ran.returncode == 0, ran.stderr
        assert said in ran.stdout
    kinds = [e["kind"] for e in cli.json("nodes", "events", agent.name)["items"]]
    assert kinds == ["uncordoned", "draining", "cordoned", "joined", "joined"]
    page = cli.json("nodes", "events", agent.name, "--limit", 2)
    rest = cli.run("nodes", "events", agent.name, "--cursor", page["next_cursor"]).stdout
    assert "cordoned" in rest
    assert "uncordoned" not in rest


def test_loading_and_unloading(
    cli: Cli, admin: httpx.Client, agent: Agent, version: Version
) -> None:
    asked = cli.run("assign", agent.name, f"{version.model_id}@{version.name}")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == f"{version.model_id}@{version.name} requested\n"
    ((assignment,),) = [admin.get(f"/api/nodes/{agent.id}").json()["assignments"]]
    waiting = eventually(lambda: agent.report(assignment["id"], "ready"))
    ran = cli.run("nodes", "assign", agent.name, version.model_id, "--follow")
    waiting.join()
    assert (ran.returncode, ran.stdout) == (0, f"{version.model_id}@{version.name} ready\n")
    gone = cli.run("nodes", "unassign", agent.name, version.model_id)
    assert gone.stdout == f"{version.model_id}@{version.name} removing\n"
    failing = eventually(lambda: agent.report(assignment["id"], "failed", detail="no \x1b[31m GPU"))
    ran = cli.run("nodes", "assign", agent.name, version.model_id, "--follow")
    failing.join()
    assert ran.returncode == 1
    assert ran.stdout == f"{version.model_id}@{version.name} failed: no [31m GPU\n"


async def test_a_drain_that_is_followed(
    cli: Cli, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job = await dispatch(database, submit(admin, version), agent, assignment_id)
    following = cli.start("drain", agent.name, "--deadline", "10m", "--watch")
    assert following.stderr is not None
    first = following.stderr.readline()
    assert first.startswith(f"{agent.name}: 1 jobs left, 1 models to move, 1 to unload, deadline ")
    agent.complete(job.id, job.attempt, "succeeded")
    assert following.stderr.readline().startswith(f"{agent.name}: 0 jobs left, 1 models to move")
    # What an orchestrator does.
    async with database.transaction() as store:
        await store.moves.end_drain(agent.id)
    out, _ = following.communicate(timeout=20)
    assert following.returncode == 0
    assert out == (
        f"{agent.name}: drained, no room elsewhere for {version.model_id}@{version.name}\n"
    )
    assert "drained" in cli.run("nodes", "show", agent.name).stdout


def test_wrong_words_are_one_line(cli: Cli, agent: Agent) -> None:
    for arguments in (
        ("nodes", "show", "no-such-node"), ("nodes", "events", str(UUID(int=1))),
        ("nodes", "show", "../../etc"), ("nodes", "assign", agent.name, "test/none"),
        ("nodes", "assign", agent.name, "test/none@v1"), ("nodes", "unassign", agent.name, "test/x"),
        ("nodes", "ls", "--cursor", "nonsense"),
    ):  # fmt: skip
        ran = cli.run(*arguments)
        assert ran.returncode == 1, arguments
        assert ran.stderr.count("\n") == 1, ran.stderr
        assert "Traceback" not in ran.stderr
    for deadline in ("10 minutes", "0", "8d", "-1s"):
        ran = cli.run("nodes", "drain", agent.name, "--deadline", deadline)
        assert ran.returncode == 2
        assert "Traceback" not in ran.stderr
    assert "--deadline" in cli.run("drain", "--help").stdout
