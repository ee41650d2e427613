"""A whole stack as a child process, and what a test asks of it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from vyvo_dagster.client import Client
from vyvo_dagster.client.models import Build
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.process import marked_pids
from vyvo_dagster.objects.store import ObjectStore
from vyvo_dagster.settings import S3Settings

STOP_SECONDS = 60
TEMPLATE = "digits-diffusion"


@dataclass
class RunningStack:
    """What `vyvo up --json` said, and its process."""

    process: "subprocess.Popen[str]"
    data_dir: Path
    said: dict[str, Any]

    def client(self) -> Client:
        return Client(self.said["api"], self.said["admin_key"])

    def stop(self, number: signal.Signals) -> int:
        """Send the signal, wait; the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def left_behind(self) -> set[int]:
        """Processes that still belong to this data directory."""
        return set(marked_pids(str(self.data_dir)))

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = httpx.post(
            f"{self.said['dagster']}/graphql",
            json={"query": query, "variables": variables},
            timeout=30,
        ).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def upload_weights(self, path: Path) -> str:
        """Put a weights file into the stack's S3; its URI."""
        secrets = json.loads((self.data_dir / "secrets.json").read_text())
        settings: dict[str, Any] = {
            "endpoint": self.said["s3"],
            "access_key": secrets["s3_access_key"],
            "secret_key": secrets["s3_secret_key"],
        }
        store = ObjectStore(S3Settings(**settings))
        bucket, key = store.bucket(Modality.MODEL), f"tests/{path.name}"
        store.put_file(bucket, key, path)
        return f"s3://{bucket}/{key}"


@contextmanager
def running(data_dir: Path, *options: str) -> Generator[RunningStack]:
    """A stack with ports of its own; stopped at the end where the test has not."""
    stack = _start(data_dir, *options)
    try:
        yield stack
    finally:
        if stack.process.poll() is None:
            stack.stop(signal.SIGTERM)


def _start(data_dir: Path, *options: str) -> RunningStack:
    ports = Ports(data_dir.with_name("ports.json"))
    command = [
        sys.executable,
        "-m",
        "vyvo_dagster.cli",
        "up",
        "--json",
        "--data-dir",
        str(data_dir),
    ]
    command += [
        "--port",
        str(ports.take("api")),
        "--dagster-port",
        str(ports.take("dagster")),
        *options,
    ]
    log = data_dir.with_name("up.log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=output, text=True, start_new_session=True
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the stack did not start:\n{log.read_text()[-3000:]}"
    return RunningStack(process, data_dir, json.loads(line))


def build_and_assign(client: Client, model_id: str, version: str, weights_uri: str) -> Build:
    """Build a digits runner and load it on every node; the build as it ended."""
    submitted = client.submit_build(
        {
            "template": TEMPLATE,
            "runner_name": "digits",
            "model_id": model_id,
            "version": version,
            "weights_uri": weights_uri,
        }
    )
    built = client.wait_for_build(submitted.build_id, 240)
    assert built.status == "succeeded", built
    version_id = client.version(model_id, version).id
    for node in client.nodes().items:
        client.assign(node.id, model_id, version_id)
    until(
        lambda: all(
            a.state == "ready" for n in client.nodes().items for a in client.node(n.id).assignments
        ),
        60,
        "the version is ready on every node",
    )
    return built


def until(condition: Any, seconds: float, what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
