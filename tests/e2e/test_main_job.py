"""The main job on a whole stack: build, assign, run, stop in the middle, start again."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import RunningStack, build_and_assign, running, until
from vyvo_dagster.client import Client
from vyvo_dagster.training.digits import TrainConfig, save_weights, train

MODEL_ID = "e2e/digits"
# The longest input that the model takes: about a second on this machine.
LONG = {"count": 64, "steps": 200}

MATERIALIZATION = """query($key: AssetKeyInput!, $partitions: [String!]) {
  assetOrError(assetKey: $key) { ... on Asset { assetMaterializations(partitions: $partitions) {
    partition runId
    metadataEntries { label ... on PathMetadataEntry { path } ... on TextMetadataEntry { text } ... on IntMetadataEntry { intRepr }
      ... on FloatMetadataEntry { floatValue } ... on UrlMetadataEntry { url } } } } } }"""
UPSTREAM = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
  ... on AssetNode { dependencyKeys { path } } } }"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights from a short training: what the pictures look like is another test's matter."""
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    save_weights(train(TrainConfig(epochs=5)), path)
    return path


def metadata(stack: RunningStack, asset: str, partition: str) -> dict[str, Any]:
    found = stack.graphql(MATERIALIZATION, key={"path": [asset]}, partitions=[partition])
    (materialization,) = found["assetOrError"]["assetMaterializations"]
    assert materialization["partition"] == partition
    return {
        entry["label"]: next((v for k, v in entry.items() if k != "label"), None)
        for entry in materialization["metadataEntries"]
    }


def interrupt_jobs(stack: RunningStack, client: Client, number: signal.Signals) -> list[str]:
    """Stop the stack while the first of several jobs runs; the jobs' ids."""
    ids = [str(client.submit(MODEL_ID, {"digit": digit, **LONG}).job_id) for digit in range(4)]
    for event in client.job_events(ids[0]):
        if event.kind == "started":
            break
    assert stack.stop(number) == 0
    assert not stack.left_behind()
    return ids


def assert_each_ended_once(client: Client, ids: list[str]) -> list[int]:
    """Every job succeeded with one artifact that can be fetched; the numbers of their attempts."""
    attempts = []
    for job_id in ids:
        until(lambda job_id=job_id: client.job(job_id).status == "succeeded", 60, f"{job_id} ends")
        job = client.job(job_id)
        (artifact,) = job.artifacts
        assert client.download(artifact.presigned_url or "").startswith(b"\x89PNG")
        outcomes = [a.outcome for a in job.attempts]
        assert outcomes.count("succeeded") == 1
        attempts.append(len(outcomes))
    return attempts


def test_the_main_job_and_its_interruptions(tmp_path: Path, weights: Path) -> None:
    data_dir = tmp_path / "data"
    with running(data_dir, "--engine", "process") as stack, stack.client() as client:
        built = build_and_assign(client, MODEL_ID, "v1", stack.upload_weights(weights))
        partition = f"{MODEL_ID}@v1"
        image = metadata(stack, "runner_image", partition)
        assert image["digest"] == built.image_digest
        assert int(image["size_bytes"]) > 0
        assert float(image["duration_seconds"]) > 0
        assert image["log_url"]
        assert metadata(stack, "model_weights", partition)["sha256"]
        upstream = stack.graphql(UPSTREAM, key={"path": ["runner_image"]})
        assert {"path": ["model_weights"]} in upstream["assetNodeOrError"]["dependencyKeys"]
        first = interrupt_jobs(stack, client, signal.SIGINT)

    with running(data_dir, "--engine", "process") as stack, stack.client() as client:
        attempts = assert_each_ended_once(client, first)
        assert max(attempts) == 2, "the job that ran was handed back and ran again"
        second = interrupt_jobs(stack, client, signal.SIGTERM)

    with (
        running(data_dir, "--engine", "process", "--no-dagster") as stack,
        stack.client() as client,
    ):
        assert_each_ended_once(client, [*first, *second])
        assert stack.stop(signal.SIGTERM) == 0
    assert not stack.left_behind()
