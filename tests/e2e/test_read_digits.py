"""The shipped workflow on a whole stack: real models draw and read, Dagster shows the run."""

from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tests.e2e.stack import RunningStack, build_and_assign, running, until
from vyvo_dagster.client import Client
from vyvo_dagster.demo.__main__ import MODEL_ID, READER_ID, READER_TEMPLATE
from vyvo_dagster.demo.workflow import read_digits
from vyvo_dagster.training.digits import TrainConfig, save_weights, train

# Of ten digits of 8 by 8 pixels, read by a model that has never seen such.
WANTED = 8

RUN = """query($id: ID!) { runOrError(runId: $id) { ... on Run {
  status tags { key value }
  stepStats { stepKey status startTime endTime materializations { assetKey { path } } }
} } }"""
NODES = "query { assetNodes { assetKey { path } dependencyKeys { path } repository { location { name } } } }"
JOBS = """query { repositoryOrError(repositorySelector: {
  repositoryName: "workflows", repositoryLocationName: "workflows" }) {
  ... on Repository { jobs { name } } } }"""


@pytest.mark.xdist_group("hosts")
def test_digits_are_drawn_read_and_laid_out(tmp_path: Path) -> None:
    weights = tmp_path / "digits.npz"
    save_weights(train(TrainConfig(epochs=100)), weights)
    with running(tmp_path / "data", "--engine", "process", "--agents", "1") as stack:
        client = stack.client()
        build_and_assign(client, MODEL_ID, "v1", stack.upload_weights(weights))
        build_reader(client)
        outcome = read_digits(client, tmp_path, Console())
        pairs = zip(outcome.drawn, outcome.read, strict=True)
        assert sum(str(drawn) == read for drawn, read in pairs) >= WANTED
        with Image.open(outcome.sheet) as sheet:
            assert sheet.size == (4 * 128, 3 * (128 + 24))
        check_dagster(stack, outcome.dagster_run_id)
        client.close()


def build_reader(client: Client) -> None:
    submitted = client.submit_build({
        "template": READER_TEMPLATE, "runner_name": "reader", "model_id": READER_ID, "version": "v1",
    })  # fmt: skip
    built = client.wait_for_build(submitted.build_id, 400)
    assert built.status == "succeeded", built
    version_id = client.version(READER_ID, "v1").id
    for node in client.nodes().items:
        client.assign(node.id, READER_ID, version_id)
    until(
        lambda: all(
            a.state == "ready" for n in client.nodes().items for a in client.node(n.id).assignments
        ),
        90, "the reader is ready on every node",
    )  # fmt: skip


def check_dagster(stack: RunningStack, run_id: str) -> None:
    until(
        lambda: stack.graphql(RUN, id=run_id)["runOrError"].get("status") == "SUCCESS",
        20, "Dagster knows that the run has succeeded",
    )  # fmt: skip
    run = stack.graphql(RUN, id=run_id)["runOrError"]
    steps = {step["stepKey"]: step for step in run["stepStats"]}
    assert {"draw__items", "draw[0]", "draw[9]", "read[9]", "captions", "sheet"} <= steps.keys()
    assert all(step["status"] == "SUCCESS" for step in steps.values())
    assert steps["sheet"]["startTime"] >= steps["read[9]"]["endTime"] - 0.001
    (made,) = steps["sheet"]["materializations"]
    assert made["assetKey"]["path"] == ["workflows", "admin", *named("sheet")]
    assert sum(len(steps[f"draw[{n}]"]["materializations"]) for n in range(10)) == 10
    until(
        lambda: stack.graphql(JOBS)["repositoryOrError"].get("jobs", []) != [],
        20, "the version is a job, without a restart",
    )  # fmt: skip
    nodes = {
        tuple(node["assetKey"]["path"]): [tuple(key["path"]) for key in node["dependencyKeys"]]
        for node in stack.graphql(NODES)["assetNodes"]
        if node["repository"]["location"]["name"] == "workflows"
    }
    draw, read, sheet = (("workflows", "admin", *named(step)) for step in ("draw", "read", "sheet"))
    assert nodes[draw] == [("model_version",)]
    assert set(nodes[read]) == {("model_version",), draw}
    assert set(nodes[sheet]) == {("model_version",), draw, read}


def named(step: str) -> list[str]:
    """The last parts of the key of a step's artifacts."""
    from vyvo_dagster.execution.workflows.names import artifact_key

    return list(artifact_key("admin", "read-digits", step).path[2:])
