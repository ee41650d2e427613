"""Workflows by the clients and by the command, with an engine that the test plays."""

import asyncio
import json
import xml.etree.ElementTree as ET
from uuid import UUID

import pytest

from vyvo_dagster.client import AsyncClient, Client
from vyvo_dagster.domain.workflow.state import RunState
from vyvo_dagster.errors import InvalidWorkflow
from vyvo_dagster.store.database import Database

from .test_cli import Cli, cli
from .world import Api, Version

__all__ = ["cli"]

from .workflow_world import BAD, OK, Engine, definition


@pytest.fixture
def engine(api: Api, database: Database) -> Engine:
    return Engine(api, database)


async def test_the_clients_do_all_of_it(api: Api, version: Version, engine: Engine) -> None:
    document = definition(version)
    with Client(api.url, api.admin_key) as client:
        flows = client.workflows
        assert flows.validate(document).valid
        with pytest.raises(InvalidWorkflow) as caught:
            flows.push({**document, "steps": []})
        assert caught.value.extra["problems"][0]["path"] == "$.steps"
        assert flows.push(document).version == 1
        name = document["name"]
        assert [s.name for s in flows.get(name).steps] == ["make", "count"]
        assert name in {w.name for w in flows.list(limit=200).items}
        assert [v.version for v in flows.versions(name).items] == [1]
        assert flows.version(name, 1).definition == document
        assert flows.pause(name).paused
        assert flows.schema()["title"]
        run = flows.run(name, {"digits": [1]}, idempotency_key="k")
        assert flows.run(name, {"digits": [1]}, idempotency_key="k").run_id == run.run_id
        await engine.turn(run.run_id)
        await engine.turn(run.run_id, BAD)
        done = flows.wait(run.run_id, 10)
        assert done.status is RunState.FAILED
        assert done.error is not None
        assert done.error.message.startswith("step make: items_failed: 1 of 1 items failed")
        assert [e.kind for e in flows.events(run.run_id)][-1] == "run_completed"
        again = flows.retry(run.run_id)
        assert flows.cancel(again.run_id).cancel_requested
        assert {r.run_id for r in flows.runs(workflow=name).items} == {run.run_id, again.run_id}
    async with AsyncClient(api.url, api.admin_key) as client:
        found = await client.workflows.get_run(run.run_id)
        assert found.steps
        assert [e.kind async for e in client.workflows.events(run.run_id)][-1] == "run_completed"
        assert (await client.workflows.get(name)).paused


async def test_the_command_checks_pushes_runs_and_draws(
    cli: Cli, version: Version, engine: Engine
) -> None:
    document = definition(version)
    name = document["name"]
    file = cli.home / "w.json"
    file.write_text(json.dumps({**document, "steps": [{"name": "a", "model": "x"}]}))
    bad = cli.run("workflow", "validate", "w.json")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.splitlines()[0].startswith(
        "w.json: step a, $.steps[0].model: 'x' is no model"
    )
    assert cli.run("workflow", "push", "w.json").stderr == bad.stderr
    drawn = cli.run("workflow", "graph", "w.json")
    assert drawn.returncode == 1
    assert "Traceback" not in drawn.stderr
    file.write_text("{")
    assert cli.run("workflow", "push", "w.json").stderr.startswith(
        "vyvo workflow push: w.json is not JSON"
    )
    file.write_text(json.dumps(document))
    assert cli.run("workflow", "validate", "w.json").stdout == "w.json: 2 steps, no faults\n"
    assert cli.run("workflow", "push", "w.json").stdout == f"pushed {name} version 1\n"
    assert cli.run("workflow", "push", "w.json").stdout == f"is already {name} version 1\n"
    for what in (name, "w.json"):
        drawn = cli.run("workflow", "graph", what)
        assert drawn.stdout.splitlines()[0].startswith("●"), drawn.stderr
        assert f"{version.model_id} (for each)" in drawn.stdout
    assert cli.run("workflow", "graph", name, "--svg", "w.svg").stdout == "w.svg\n"
    assert ET.parse(cli.home / "w.svg").getroot().tag.endswith("svg")
    assert name in cli.run("workflow", "list").stdout

    following = cli.start("workflow", "run", name, "-i", "digits=[1]", "--follow", "--json")
    assert following.stderr is not None
    run_id = UUID(following.stderr.readline().removeprefix("run ").strip())
    await engine.turn(run_id)
    await engine.turn(run_id, OK)
    out, err = await asyncio.to_thread(following.communicate, timeout=30)
    assert following.returncode == 0, err
    assert json.loads(out)["outputs"] == {"count": "1"}
    assert "succeeded  make[0]" in err
    drawn = cli.run("workflow", "graph", run_id)
    assert drawn.stdout.splitlines()[0].endswith("succeeded")

    failing = UUID(cli.run("workflow", "run", name).stdout.strip())
    await engine.turn(failing)
    await engine.turn(failing, BAD)
    followed = cli.run("workflow", "show", failing, "--follow")
    assert followed.returncode == 1
    assert "prediction_failed: boom" in followed.stdout
    assert "has failed: step_failed" in followed.stderr
    retried = cli.run("workflow", "retry", failing).stdout.strip()
    assert cli.run("workflow", "cancel", retried).stdout == f"{retried} canceled\n"
    assert (
        str(failing) in cli.run("workflow", "runs", "--workflow", name, "--status", "failed").stdout
    )
    missing = cli.run("workflow", "run", "no-such")
    assert (missing.returncode, missing.stderr) == (1, "vyvo workflow run: no workflow 'no-such'\n")
    assert json.loads(cli.run("workflow", "schema").stdout)["$id"]
