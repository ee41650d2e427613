"""Commands in images without Dagster, on a host that is chosen, from ops of a real worker."""

import re
from typing import Any
from uuid import UUID

import pytest
from dagster import DagsterRunStatus
from uuid_utils.compat import uuid7

from tests.integration.dagster import engines, lossy_engine
from tests.integration.dagster.routed_world import World, until
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.store.database import Store

pytestmark = pytest.mark.xdist_group("hosts")

REPORTS = """
import os, sys
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes() as pipes:
    pipes.log.info("a word by pipes, run %s" % pipes.run_id)
    print("a line of its own", flush=True)
    sys.stdout.write("x" * 70000 + "\\n")
    pipes.report_custom_message({"greeting": os.environ["GREETING"]})
"""


@pytest.fixture(scope="module")
def model_id(routed: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A version that was built as an image, as the registry knows it."""
    image = engines.build_pipes(routed.urls["default"], tmp_path_factory.mktemp("image"))
    model_id, version_id = f"test/m-{uuid7().hex[-12:]}", uuid7()

    async def add(db: Store) -> UUID:
        await db.models.ensure(model_id, "tester")
        made = await db.models.create_draft(
            id=version_id,
            model_id=model_id,
            version="1",
            template="digits-diffusion",
            modality=Modality.IMAGE,
            values={"runner_image": image, "env": {"GREETING": "hello"}},
        )
        assert made is not None
        return made.id

    routed.store.call(add)
    return model_id


def launch(routed: World, model_id: str, code: str, **where: str) -> str:
    config: dict[str, Any] = {"model_id": model_id, "version": "1", **where}
    config["command"] = ["python3", "-c", code]
    return routed.launch("run_in_runner", {"ops": {"runner_command": {"config": config}}})


def test_a_command_runs_on_its_host_and_reports_by_pipes(routed: World, model_id: str) -> None:
    run_id = launch(routed, model_id, REPORTS, host="host2")
    assert routed.ended(run_id) is DagsterRunStatus.SUCCESS, routed.said(run_id)
    match = routed.told(run_id, "runner_command", r"container (\w{64}) on host2")
    assert match is not None
    assert routed.started_on(match[1]) == ["host2"]
    said = routed.said(run_id, "runner_command")
    assert f"a word by pipes, run {run_id}" in "\n".join(said)
    assert "a line of its own" in said
    assert "x" * 70000 in said
    assert routed.containers(run_id) == {}


@pytest.mark.parametrize("request_", [rb"POST \S*/containers/create", rb"POST \S*/start"])
def test_an_engine_whose_answer_is_lost_runs_the_command_once(
    routed: World, model_id: str, request_: bytes
) -> None:
    with lossy_engine.started(routed.home / "lossy.sock", routed.urls["default"]) as engine:
        routed.join("lossy")
        engine.lose(request_)
        run_id = launch(routed, model_id, "print('once')", host="lossy")
        assert routed.ended(run_id) is DagsterRunStatus.SUCCESS, routed.said(run_id)
        assert engine.lost == 1
        routed.forget("lossy")
    assert routed.said(run_id, "runner_command").count("once") == 1
    assert routed.containers(run_id) == {}


def test_a_command_that_fails_fails_its_op(routed: World, model_id: str) -> None:
    run_id = launch(routed, model_id, "import sys; print('no luck'); sys.exit(3)", pool="three")
    assert routed.ended(run_id) is DagsterRunStatus.FAILURE
    assert routed.told(run_id, "runner_command", "no luck")
    assert "container ended with status 3" in failure(routed, run_id)
    assert routed.containers(run_id) == {}


def test_a_command_that_uses_too_much_memory_is_told_so(routed: World, model_id: str) -> None:
    run_id = launch(routed, model_id, "x = b'x' * (1 << 30)", host="host2", memory="64MiB")
    assert routed.ended(run_id) is DagsterRunStatus.FAILURE
    assert f"used more memory than {64 << 20} bytes" in failure(routed, run_id)


def test_a_terminated_run_leaves_no_container(routed: World, model_id: str) -> None:
    run_id = launch(
        routed, model_id, "import time; print('begun', flush=True); time.sleep(600)", host="host2"
    )
    until(lambda: routed.told(run_id, "runner_command", "^begun$"), what="the command")
    assert set(routed.containers(run_id)) == {"host2"}
    routed.terminate(run_id)
    assert routed.ended(run_id, 45) is DagsterRunStatus.CANCELED
    assert routed.containers(run_id) == {}


def test_a_command_without_a_host_is_refused(routed: World, model_id: str) -> None:
    run_id = launch(routed, model_id, "pass")
    assert routed.ended(run_id) is DagsterRunStatus.FAILURE
    assert "give a host, a pool or a gpu" in failure(routed, run_id)


def failure(routed: World, run_id: str) -> str:
    return re.sub(
        r"\\n", "\n", "\n".join(str(e.dagster_event) for e in routed.instance.all_logs(run_id))
    )
