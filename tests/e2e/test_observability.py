"""What a whole stack says of itself: metrics by Prometheus, traces by OTLP, logs without secrets.

One stack for all: a build, a job, a workflow, and then what was told of them.
"""

import re
import secrets
import subprocess
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import prometheus_client
import pytest

from tests.e2e.stack import TEMPLATE, RunningStack, running, until
from tests.otlp import Received, receiver
from tests.prometheus import Prometheus, scraping
from vyvo_dagster.client import Client
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.telemetry import metrics
from vyvo_dagster.training.digits import TrainConfig, save_weights, train

pytestmark = pytest.mark.xdist_group("observability")

MODEL_ID = "observed/digits"
WORKFLOW = {
    "name": "observed",
    "steps": [
        {"name": "draw", "model": MODEL_ID, "input": {"digit": 3, "count": 1, "steps": 5}},
        {"name": "again", "model": MODEL_ID, "needs": ["draw"],
         "input": {"digit": 4, "count": 1, "steps": 5}},
    ],
}  # fmt: skip
# Of what this stack does not do: nothing goes by gRPC, and no webhook is sent.
QUIET = {"vyvo_grpc_request_seconds", "vyvo_webhooks"}


@dataclass
class Observed:
    """The stack after its work, with what was told of it."""

    stack: RunningStack
    prometheus: Prometheus
    received: Received
    traces: dict[str, str]
    """What was done → the id of the trace that its request began."""


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Generator[Observed]:
    home = tmp_path_factory.mktemp("observed")
    weights = home / "digits.npz"
    save_weights(train(TrainConfig(epochs=2)), weights)
    ports = Ports(home / "receiver-ports.json")
    with ExitStack() as stack:
        received = stack.enter_context(receiver(ports.take("otlp")))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "500")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        patch.setenv("VYVO_LOG_FORMAT", "json")
        patch.setenv("VYVO_AGENT_LOG_FORMAT", "json")
        patch.setenv("LD_LIBRARY_PATH", str(compiled_nvml(home)))
        up = stack.enter_context(running(home / "data", "--engine", "process"))
        targets = {f"vyvo-{name}": urlsplit(url).netloc for name, url in up.said["metrics"].items()}
        prometheus = stack.enter_context(scraping(home, targets))
        with up.client() as client:
            traces = worked(client, up, up.upload_weights(weights))
        yield Observed(up, prometheus, received, traces)


def compiled_nvml(home: Path) -> Path:
    """A folder with a libnvidia-ml.so.1 that tells of two GPUs."""
    source = Path(__file__).parents[1] / "integration" / "agent" / "nvml_stub.c"
    folder = home / "nvml"
    folder.mkdir()
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, timeout=120, check=True)
    return folder


def worked(client: Client, up: RunningStack, weights_uri: str) -> dict[str, str]:
    """A build, a job and a workflow, each in the trace of its request."""
    traces = {name: secrets.token_hex(16) for name in ("build", "job", "workflow")}

    def send(what: str, path: str, body: Any) -> dict[str, Any]:
        answer = httpx.post(
            f"{up.said['api']}{path}", json=body, timeout=60,
            headers={"Authorization": f"Bearer {up.said['admin_key']}",
                     "traceparent": f"00-{traces[what]}-{'c' * 16}-01"},
        )  # fmt: skip
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    build = {"template": TEMPLATE, "runner_name": "digits", "model_id": MODEL_ID, "version": "1",
             "weights_uri": weights_uri}  # fmt: skip
    built = client.wait_for_build(send("build", "/api/builds", build)["build_id"], 300)
    assert built.status == "succeeded", built
    version = client.version(MODEL_ID, "1").id
    (node,) = client.nodes().items
    client.assign(node.id, MODEL_ID, version)
    until(
        lambda: any(a.state == "ready" for a in client.node(node.id).assignments),
        120, "the version is ready",
    )  # fmt: skip
    client.workflows.push(WORKFLOW)
    job = send("job", "/api/jobs", {"model_id": MODEL_ID, "input": {"digit": 7, "count": 1, "steps": 5}})  # fmt: skip
    # Someone follows it, so that an event stream is open while it is scraped.
    assert [e.kind for e in client.job_events(job["job_id"])][-1] == "completed"
    run = send("workflow", f"/api/workflows/{WORKFLOW['name']}/runs", {})
    until(
        lambda: client.workflows.get_run(run["run_id"]).status == "succeeded",
        120,
        "the workflow succeeds",
    )
    # One that waits, for the figures of the queues.
    client.cordon(node.id)
    client.submit(MODEL_ID, {"digit": 1, "count": 1, "steps": 5}, priority="batch")
    return traces


def every_metric() -> list[prometheus_client.metrics.MetricWrapperBase]:
    names = (name for name in metrics.__all__ if name.isupper() and name != "CONTENT_TYPE")
    return [getattr(metrics, name) for name in names]


def test_all_processes_are_scraped(observed: Observed) -> None:
    asked = {"api", "orchestrator", "workflow-engine", "workflow-reporter", "worker", "agent-1"}
    assert set(observed.stack.said["metrics"]) == asked
    until(
        lambda: all(h.startswith("up") for h in observed.prometheus.targets().values()),
        60, f"all targets are up: {observed.prometheus.targets()}",
    )  # fmt: skip


def test_every_metric_is_in_prometheus(observed: Observed) -> None:
    def missing() -> list[str]:
        return [
            metric._name
            for metric in every_metric()
            if metric._name not in QUIET
            and not observed.prometheus.query(f'{{__name__=~"{metric._name}(_total|_count)?"}}')
        ]

    deadline = time.monotonic() + 60
    while missing() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert missing() == []


def test_figures_are_those_of_the_work(observed: Observed) -> None:
    query = observed.prometheus.query

    def value(expression: str) -> float:
        found = query(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else -1.0

    for expression, expected in {
        # A job of its own and two of the workflow's steps; counted once over all processes.
        f'sum(vyvo_jobs_total{{model="{MODEL_ID}",status="succeeded"}})': 3,
        f'sum(vyvo_agent_attempts_total{{model="{MODEL_ID}",status="succeeded"}})': 3,
        f'sum(vyvo_job_latency_seconds_count{{model="{MODEL_ID}",phase="total"}})': 3,
        'sum(vyvo_build_duration_seconds_count{status="succeeded",backend="venv"})': 1,
        'sum(vyvo_workflow_runs_total{status="succeeded"})': 1,
        'max(vyvo_node_capacity{node="local-1",kind="gpus"})': 2,
        'max(vyvo_node_capacity{node="local-1",kind="slots"})': 1,
        'max(vyvo_gpu_utilization_ratio{node="local-1",gpu="0"})': 0.42,
        "max(vyvo_node_up)": 1,
        "max(vyvo_outbox_lag_seconds)": 0,
    }.items():
        until(
            lambda: value(expression) == pytest.approx(expected),  # noqa: B023 - called at once
            60, f"{expression} is {expected}, not {query(expression)}",
        )  # fmt: skip


def test_no_label_is_an_id(observed: Observed) -> None:
    series = observed.prometheus.query('{__name__=~"vyvo_.+"}')
    assert series
    identifier = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-|[0-9a-f]{16}")
    labels = {(s["metric"]["__name__"], k, v) for s in series for k, v in s["metric"].items()}
    assert [label for label in labels if identifier.search(label[2])] == []


def test_no_alert_fires(observed: Observed) -> None:
    assert observed.prometheus.query('ALERTS{alertstate="firing"}') == []
