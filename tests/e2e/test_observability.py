"""What a whole stack says of itself: metrics by Prometheus, traces by OTLP, logs without secrets.

One stack for all: a build, a job, a workflow, and then what was told of them.
"""

import importlib.util
import json
import re
import secrets
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import httpx
import prometheus_client
import pytest

from tests.e2e.stack import TEMPLATE, RunningStack, running, until
from tests.e2e.surroundings import compiled_nvml, listening
from tests.otlp import Received, Span, path, receiver, tree
from tests.prometheus import SCRAPE_SECONDS, Prometheus, scraping
from vyvo_dagster.client import Client
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.telemetry import metrics
from vyvo_dagster.training.digits import TrainConfig, save_weights, train

pytestmark = pytest.mark.xdist_group("observability")

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
MODEL_ID = "observed/digits"
WORKFLOW = {
    "name": "observed",
    "steps": [
        {"name": "draw", "model": f"{MODEL_ID}@1", "input": {"digit": 3, "count": 1, "steps": 5}},
        {"name": "again", "model": f"{MODEL_ID}@1", "needs": ["draw"],
         "input": {"digit": 4, "count": 1, "steps": 5}},
    ],
}  # fmt: skip
# What the C library of gRPC writes to the standard error stream by itself.
FOREIGN = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d|WARNING: All log messages before absl")
# Nothing becomes old enough to be collected.
QUIET = {"vyvo_collected_total", "vyvo_collected_bytes_total"}
PLAIN_JOBS = 4
# Those, the one with a webhook, the unrecorded one, and the workflow's two.
JOBS = PLAIN_JOBS + 4
# What the requests name as their parent: a span of the client's own, which is told of nowhere here.
CLIENT_SPAN = "c" * 16


@dataclass
class Observed:
    """The stack after its work, with what was told of it."""

    stack: RunningStack
    prometheus: Prometheus
    received: Received
    traces: dict[str, str]
    """What was done → the id of the trace that its request began."""
    since: float


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Generator[Observed]:
    home, since = tmp_path_factory.mktemp("observed"), time.time()
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
        # Both ways of reports are in use by agents; HTTP is what most tests do.
        grpc = Ports(home / "ports.json").take("grpc")
        patch.setenv("VYVO_AGENT_REPORT_BY", "grpc")
        patch.setenv("VYVO_AGENT_GRPC_URL", f"grpc://127.0.0.1:{grpc}")
        patch.setenv("VYVO_WEBHOOK_ALLOW_LOOPBACK", "true")
        up = stack.enter_context(
            running(home / "data", "--engine", "process", "--grpc-port", str(grpc))
        )
        targets = {f"vyvo-{name}": urlsplit(url).netloc for name, url in up.said["metrics"].items()}
        prometheus = stack.enter_context(scraping(home, targets))
        hook = stack.enter_context(listening())
        with up.client() as client:
            traces = worked(client, up, up.upload_weights(weights), hook)
        yield Observed(up, prometheus, received, traces, since)


def worked(client: Client, up: RunningStack, weights_uri: str, hook: str) -> dict[str, str]:
    """A build, a job and a workflow, each in the trace of its request."""
    traces = {name: secrets.token_hex(16) for name in ("build", "job", "workflow")}

    def send(what: str, path: str, body: Any, flags: str = "01") -> dict[str, Any]:
        answer = httpx.post(
            f"{up.said['api']}{path}", json=body, timeout=60,
            headers={"Authorization": f"Bearer {up.said['admin_key']}",
                     "traceparent": f"00-{traces[what]}-{CLIENT_SPAN}-{flags}"},
        )  # fmt: skip
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    build = {"template": TEMPLATE, "runner_name": "digits", "model_id": MODEL_ID, "version": "1",
             "weights_uri": weights_uri}  # fmt: skip
    accepted = [send("build", "/api/builds", build)["build_id"]]
    # Prometheus sees a counter grow from the second event on: what makes it is not counted as growth.
    for step in (1, 2):
        built = client.wait_for_build(accepted[-1], 300)
        assert built.status == "succeeded", (
            built.error,
            client.request("GET", f"/api/builds/{built.build_id}")["log"],
        )
        if step == 1:
            accepted.append(client.submit_build({**build, "version": "2"}).build_id)
    version = client.version(MODEL_ID, "1").id
    (node,) = client.nodes().items
    client.assign(node.id, MODEL_ID, version)
    until(
        lambda: any(a.state == "ready" for a in client.node(node.id).assignments),
        120, "the version is ready",
    )  # fmt: skip
    client.workflows.push(WORKFLOW)
    client.set_webhook_secret()
    asked = {"model_id": MODEL_ID, "version": "1", "input": {"digit": 7, "count": 1, "steps": 5},
             "webhook": {"url": hook}}  # fmt: skip
    job = send("job", "/api/jobs", asked)
    # Someone follows it, so that an event stream is open while it is scraped.
    assert [e.kind for e in client.job_events(job["job_id"])][-1] == "completed"
    run = send("workflow", f"/api/workflows/{WORKFLOW['name']}/runs", {})
    until(
        lambda: client.workflows.get_run(run["run_id"]).status == "succeeded",
        120,
        "the workflow succeeds",
    )
    # The client does not want this one to be recorded.
    send("job", "/api/jobs", {**asked, "webhook": None}, flags="00")
    for digit in range(PLAIN_JOBS):
        time.sleep(1.5 * SCRAPE_SECONDS)
        client.wait(
            client.submit(MODEL_ID, {"digit": digit, "count": 1, "steps": 5}, version="1").job_id,
            60,
        )
    # One that waits, for the figures of the queues: no node has so much memory.
    large = {"modality": "image", "runner_image": "noop://large",
             "resources": {"gpu_memory_bytes": 1 << 50}}  # fmt: skip
    client.request("PUT", f"/api/models/{MODEL_ID}/versions/large", json=large)
    client.submit(MODEL_ID, {"digit": 1}, version="large", priority="batch")
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
        # Counted once over all processes.
        f'sum(vyvo_jobs_total{{model="{MODEL_ID}",status="succeeded"}})': JOBS,
        f'sum(vyvo_agent_attempts_total{{model="{MODEL_ID}",status="succeeded"}})': JOBS,
        f'sum(vyvo_job_latency_seconds_count{{model="{MODEL_ID}",phase="total"}})': JOBS,
        f'max(vyvo_queue_depth{{model="{MODEL_ID}",priority="batch"}})': 1,
        'sum(vyvo_build_duration_seconds_count{status="succeeded",backend="venv"})': 2,
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


def generator() -> ModuleType:
    """What makes the dashboards; a script beside them."""
    spec = importlib.util.spec_from_file_location("dashboards", GRAFANA / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look themselves up there
    spec.loader.exec_module(made)
    return made


def test_dashboards_are_what_their_code_makes() -> None:
    files = {file.name: file.read_text() for file in (GRAFANA / "dashboards").glob("*.json")}
    assert files == generator().generated(), "run make dashboards"


def queries(panels: list[dict[str, Any]]) -> Generator[tuple[str, str]]:
    for panel in panels:
        yield from queries(panel.get("panels") or [])
        for target in panel.get("targets") or []:
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(
    "file", sorted((GRAFANA / "dashboards").glob("*.json")), ids=lambda f: f.stem
)
def test_every_query_of_the_dashboards_returns_data(observed: Observed, file: Path) -> None:
    dashboard = json.loads(file.read_text())
    asked = list(queries(dashboard["panels"]))
    assert len(asked) >= 6
    deadline = time.monotonic() + 60
    while True:
        empty = [
            (title, expr)
            for title, expr in asked
            if not observed.prometheus.values(
                expr.replace("$__rate_interval", "1m").replace("$model", ".+"), observed.since
            )
        ]
        if not empty or time.monotonic() > deadline:
            break
        time.sleep(1)
    print(f"{file.stem}: {len(asked)} queries, {len(empty)} without data")
    assert empty == []


def test_no_alert_fires(observed: Observed) -> None:
    assert observed.prometheus.query('ALERTS{alertstate="firing"}') == []


def whole(observed: Observed, what: str, *needed: str) -> list[Span]:
    """The trace of what was done, once the spans that are needed have come and it has come to rest."""
    trace = observed.traces[what]
    deadline = time.monotonic() + 90
    while True:
        spans = observed.received.trace(trace)
        missing = {*needed} - {s.name for s in spans}
        # What is told of last has its children by then, but for what another process still holds.
        if not missing and orphans(spans) == []:
            break
        assert time.monotonic() < deadline, f"no {missing or orphans(spans)} in:\n{tree(spans)}"
        time.sleep(0.3)
    print(f"\n{what}\n{tree(spans)}")
    return spans


def orphans(spans: list[Span]) -> list[str]:
    """Spans whose parent is neither among them nor the client's own."""
    known = {s.id for s in spans} | {CLIENT_SPAN}
    return [s.name for s in spans if s.parent not in known]


def lines(spans: list[Span]) -> set[tuple[str, ...]]:
    """Each span as the names and services from the root to it."""
    return {tuple(path(spans, s)) for s in spans}


JOB = [
    "dispatch [vyvo-orchestrator]",
    "run attempt [vyvo-agent]",
]


def job_below(*parents: str) -> set[tuple[str, ...]]:
    """What a job's trace holds below what submitted it."""
    attempt = (*parents, *JOB)
    return {
        attempt[:-1], attempt,
        (*attempt, "wait for slot [vyvo-agent]"),
        (*attempt, "predict [vyvo-agent]"),
        (*attempt, "predict [vyvo-agent]", "upload artifact [vyvo-runner]"),
        (*attempt, "store outputs [vyvo-agent]"),
        (*attempt, "complete job [vyvo-api]"),
    }  # fmt: skip


def test_a_jobs_trace_goes_from_the_request_to_the_artifact(observed: Observed) -> None:
    spans = whole(observed, "job", "complete job", "run attempt", "POST /api/jobs")
    request = "POST /api/jobs [vyvo-api]"
    assert lines(spans) == {(request,), *job_below(request)}
    # Each once: what another job did in the same trace, unrecorded, is not among them.
    assert len(spans) == len(lines(spans))
    (request_span,) = [s for s in spans if s.parent == CLIENT_SPAN]
    assert request_span.attributes["http.response.status_code"] == 202
    (job_id,) = {s.attributes["vyvo.job_id"] for s in spans if "vyvo.job_id" in s.attributes}
    with observed.stack.client() as client:
        assert client.job(job_id).status == "succeeded"
    assert not any(s.failed for s in spans)


def test_a_builds_trace_goes_through_dagster_to_the_phases(observed: Observed) -> None:
    spans = whole(observed, "build", "run build_runner", "op model_version", "POST /api/builds")
    request, run = "POST /api/builds [vyvo-api]", "run build_runner [vyvo-worker]"
    image = (request, run, "op runner_image [vyvo-worker]")
    assert lines(spans) >= {
        (request,), (request, run), image,
        (request, run, "op model_weights [vyvo-worker]"),
        (request, run, "op model_version [vyvo-worker]"),
        *((*image, f"{phase} [vyvo-worker]") for phase in ("lock", "build", "check")),
    }  # fmt: skip
    assert all(p[:1] == (request,) for p in lines(spans))


def test_a_workflows_trace_has_its_steps_and_their_jobs(observed: Observed) -> None:
    spans = whole(observed, "workflow", f"workflow run {WORKFLOW['name']}", "step draw", "step again", "complete job")  # fmt: skip
    request = "POST /api/workflows/{name}/runs [vyvo-api]"
    run = (request, f"workflow run {WORKFLOW['name']} [vyvo-workflow-engine]")
    steps = [(*run, f"step {name} [vyvo-workflow-engine]") for name in ("draw", "again")]
    jobs = [below for step in steps for below in job_below(*step)]
    assert lines(spans) == {(request,), run, *steps, *jobs}


def test_logs_are_json_with_the_ids_of_what_they_tell_of(observed: Observed) -> None:
    logs = observed.stack.data_dir / "logs"
    for name in ("api", "orchestrator", "workflow-engine", "agent-1"):
        for line in (logs / f"{name}.log").read_text().splitlines():
            if FOREIGN.match(line):
                continue
            assert {"event", "level", "logger", "timestamp"} <= json.loads(line).keys(), (
                name,
                line,
            )


def test_no_secret_is_in_a_log_a_span_or_a_metric(observed: Observed) -> None:
    known = json.loads((observed.stack.data_dir / "secrets.json").read_text())
    hidden = {k: v for k, v in known.items() if isinstance(v, str) and k != "s3_access_key"}
    assert len(hidden) >= 4
    told = {file.name: file.read_text(errors="replace")
            for file in (observed.stack.data_dir / "logs").glob("*.log")}  # fmt: skip
    told["spans"] = repr(observed.received.spans)
    told |= {name: httpx.get(url, timeout=30).text
             for name, url in observed.stack.said["metrics"].items()}  # fmt: skip
    found = [(name, k) for name, text in told.items() for k, v in hidden.items() if v in text]
    assert found == []
