"""Every Prometheus metric of this system, in one place.

Each process serves its own; sums over processes are the scraper's work (the Celery worker's pool
shares one, see `telemetry.multiprocess`). What only rows can tell (queues, nodes) is read by
`dispatch.gauges` and told by every api and orchestrator: take its maximum, not its sum. Labels are
names of registered things, patterns of routes or members of an enum; never an id.
"""

from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

__all__ = [
    "AGENT_ATTEMPTS",
    "AGENT_HEARTBEAT",
    "AGENT_PHASES",
    "AGENT_REPORTS",
    "AGENT_RUNNING",
    "BUILDS",
    "BUILD_DURATION",
    "BUILD_PHASES",
    "COLLECTED",
    "COLLECTED_BYTES",
    "CONTENT_TYPE",
    "GPU_MEMORY",
    "GPU_UTILIZATION",
    "GRPC_REQUESTS",
    "HTTP_REQUESTS",
    "JOBS",
    "JOB_LATENCY",
    "NODE_CAPACITY",
    "NODE_UP",
    "OUTBOX_LAG",
    "QUEUE_DEPTH",
    "QUEUE_OLDEST",
    "SSE_CLIENTS",
    "WEBHOOKS",
    "WORKER_RUNS",
    "WORKFLOW_EVENTS",
    "WORKFLOW_LIVE",
    "WORKFLOW_REPORT_LAG",
    "WORKFLOW_RUNS",
    "WORKFLOW_STEPS",
    "WORKFLOW_TURN",
    "exposition",
]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

# Jobs take from milliseconds (a small model) to many minutes (video).
_JOB_SECONDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
    600,
    1800,
)
_BUILD_SECONDS = (1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1200, 3600)

QUEUE_DEPTH: Final = Gauge("vyvo_queue_depth", "Jobs that wait.", ["model", "priority"])
QUEUE_OLDEST: Final = Gauge(
    "vyvo_queue_oldest_seconds", "Age of the oldest job that waits.", ["model", "priority"]
)
JOB_LATENCY: Final = Histogram(
    "vyvo_job_latency_seconds",
    "Time of a job's phases: queue, run, total.",
    ["model", "phase"],
    buckets=_JOB_SECONDS,
)
JOBS: Final = Counter("vyvo_jobs_total", "Jobs that ended.", ["model", "status"])
NODE_CAPACITY: Final = Gauge(
    "vyvo_node_capacity",
    "What a node has: cpus, memory_bytes, gpus, gpu_memory_bytes, slots.",
    ["node", "kind"],
)
NODE_UP: Final = Gauge("vyvo_node_up", "1 while a node is ready.", ["node"])
GPU_MEMORY: Final = Gauge("vyvo_gpu_memory_bytes", "GPU memory in use.", ["node", "gpu"])
GPU_UTILIZATION: Final = Gauge(
    "vyvo_gpu_utilization_ratio", "GPU utilisation, 0 to 1.", ["node", "gpu"]
)
BUILD_DURATION: Final = Histogram(
    "vyvo_build_duration_seconds",
    "Time of a build from start to end.",
    ["template", "backend", "status"],
    buckets=_BUILD_SECONDS,
)
BUILD_PHASES: Final = Histogram(
    "vyvo_build_phase_seconds",
    "Time of a build's phases: base, lock, build, check, total and such.",
    ["backend", "phase"],
    buckets=_BUILD_SECONDS,
)
WORKER_RUNS: Final = Histogram(
    "vyvo_worker_run_seconds",
    "Time that a Celery worker had for a Dagster run: execute, resume.",
    ["kind"],
    buckets=_BUILD_SECONDS,
)
AGENT_ATTEMPTS: Final = Counter(
    "vyvo_agent_attempts_total",
    "Attempts that ended on this node, by what was reported; fenced: nothing was.",
    ["model", "status"],
)
AGENT_PHASES: Final = Histogram(
    "vyvo_agent_attempt_seconds",
    "Time of an attempt's phases on its node: wait, predict, upload, total.",
    ["model", "phase"],
    buckets=_JOB_SECONDS,
)
AGENT_RUNNING: Final = Gauge(
    "vyvo_agent_attempts_running", "Attempts on this node whose end was not reported yet."
)
AGENT_REPORTS: Final = Gauge("vyvo_agent_reports_waiting", "Reports still to be sent to the api.")
AGENT_HEARTBEAT: Final = Histogram(
    "vyvo_agent_heartbeat_seconds",
    "Time until a heartbeat was answered.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
BUILDS: Final = Gauge("vyvo_builds", "Builds that have not ended.", ["status"])
COLLECTED: Final = Gauge(
    "vyvo_collected_total", "Images and caches removed since the installation.", ["kind"]
)
COLLECTED_BYTES: Final = Gauge("vyvo_collected_bytes_total", "Bytes of what was removed.", ["kind"])
SSE_CLIENTS: Final = Gauge("vyvo_sse_clients", "Open event streams.", ["route"])
OUTBOX_LAG: Final = Gauge(
    "vyvo_outbox_lag_seconds", "Age of the oldest stream entry still to be written."
)
WEBHOOKS: Final = Counter(
    "vyvo_webhooks_total", "Tries to deliver a webhook: delivered, failed, given_up.", ["outcome"]
)
WORKFLOW_RUNS: Final = Counter("vyvo_workflow_runs_total", "Workflow runs that ended.", ["status"])
WORKFLOW_STEPS: Final = Counter(
    "vyvo_workflow_steps_total", "Workflow steps that ended.", ["status"]
)
WORKFLOW_LIVE: Final = Gauge("vyvo_workflow_runs_live", "Runs that this engine drives.")
WORKFLOW_TURN: Final = Histogram(
    "vyvo_workflow_turn_seconds",
    "Time of one turn of the workflow engine.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
WORKFLOW_REPORT_LAG: Final = Gauge(
    "vyvo_workflow_report_lag_seconds",
    "Age of the oldest end of a run that Dagster was not told of.",
)
WORKFLOW_EVENTS: Final = Counter(
    "vyvo_workflow_dagster_events_total", "Events of runs and steps written to Dagster."
)
HTTP_REQUESTS: Final = Histogram(
    "vyvo_http_request_seconds",
    "Time until an answer begins.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
GRPC_REQUESTS: Final = Histogram(
    "vyvo_grpc_request_seconds",
    "Time until a call is answered.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)


def exposition() -> bytes:
    """All metrics in the Prometheus text format."""
    return generate_latest()
