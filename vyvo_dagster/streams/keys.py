"""Every Redis key, channel and consumer group, in one place.

Postgres is the truth: all that stands under these keys can be rebuilt from rows.
"""

from typing import Final
from uuid import UUID

from vyvo_dagster.domain.job import Priority

__all__ = [
    "ALL_EVENTS",
    "BUILDS",
    "BUILD_HOSTS",
    "EPOCH",
    "GROUP_AGENT",
    "GROUP_DAGSTER",
    "GROUP_ORCHESTRATOR",
    "GROUP_WORKFLOWS",
    "NODE_MS",
    "QUEUES",
    "WAKE",
    "WORKFLOW_RUNS",
    "build_log",
    "failures",
    "is_jobs",
    "is_node",
    "job_events",
    "jobs",
    "jobs_parts",
    "node",
    "rate",
    "rebuild",
    "run_ending",
    "run_lease",
]

GROUP_ORCHESTRATOR: Final = "orchestrator"
GROUP_AGENT: Final = "agent"
GROUP_DAGSTER: Final = "dagster"
GROUP_WORKFLOWS: Final = "workflows"

BUILDS: Final = "vyvo:builds"
"""Stream of builds to launch; fields: id."""
WORKFLOW_RUNS: Final = "vyvo:workflow-runs"
"""Stream of workflow runs to start; fields: tenant, workflow, inputs (JSON), key, priority."""
BUILD_HOSTS: Final = "vyvo:build-hosts"
"""Sorted set of the hosts that execute builds; the score is when each last said so, in seconds."""
QUEUES: Final = "vyvo:queues"
"""Set of the streams of queued jobs that hold an entry, claimed or not."""
WAKE: Final = "vyvo:wake"
"""Pub/sub channel: something that dispatch waits for may have changed."""
ALL_EVENTS: Final = "vyvo:events"
"""Stream of all events, capped; one reader per api process feeds its SSE clients from it."""
EPOCH: Final = "vyvo:epoch:2"
"""Run id of the Redis whose streams hold what the rows say; missing after a flush, and another's
after a restart, which both ask for a rebuild.

The number is raised with a change of the streams' names or fields, which asks for one too."""


_JOBS: Final = "vyvo:jobs:"


def jobs(model_id: str, version: str, priority: Priority, tenant: str) -> str:
    """Stream of queued jobs of one version, priority class and tenant; fields: id, at (ms).

    Written by `streams.queues` only, together with `QUEUES`. No part holds a colon: model ids and
    versions cannot (`domain.model`), tenants cannot (they are made with API keys).
    """
    return f"{_JOBS}{model_id}:{version}:{priority}:{tenant}"


def is_jobs(stream: str) -> bool:
    """Whether a stream is one of queued jobs."""
    return stream.startswith(_JOBS)


def jobs_parts(stream: str) -> tuple[str, str, Priority, str]:
    """Model id, version, priority and tenant of a stream that `jobs` named; else ValueError."""
    if not is_jobs(stream):
        raise ValueError(f"{stream!r} is no queue of jobs")
    model_id, version, priority, tenant = stream.removeprefix(_JOBS).split(":")
    return model_id, version, Priority(priority), tenant


def rebuild(id: UUID) -> str:
    """Marker of one rebuild under way; gone if Redis was flushed meanwhile."""
    return f"vyvo:rebuild:{id}"


_NODE: Final = "vyvo:node:"
NODE_MS: Final = 86_400_000
"""Life of a node's stream after its last order or its agent's last look, in ms. A node that is gone
leaves none behind, and orders that are missed are written again from the rows."""


def node(node_id: UUID | str) -> str:
    """Stream of orders for one node's agent; fields: kind (run, cancel, sync), body (JSON)."""
    return f"{_NODE}{node_id}"


def is_node(stream: str) -> bool:
    """Whether a stream is one of orders for a node."""
    return stream.startswith(_NODE)


def job_events(job_id: UUID | str) -> str:
    """Event stream of one job, capped at 1,024; fields: kind, data (JSON)."""
    return f"vyvo:events:{job_id}"


def build_log(build_id: UUID | str) -> str:
    """Log lines of a build under way; fields: n, t, step, text, and on the last entry end."""
    return f"vyvo:build-log:{build_id}"


def rate(key_id: UUID | str) -> str:
    """Token bucket of one API key; fields: tokens, at (seconds since the epoch)."""
    return f"vyvo:rate:{key_id}"


def failures(address: str) -> str:
    """Token bucket of an address's failed authentications; fields as of `rate`."""
    return f"vyvo:auth-failures:{address}"


def run_ending(run_id: str) -> str:
    """Set while a Dagster run is asked to end and has not."""
    return f"vyvo:run:{run_id}:ending"


def run_lease(run_id: str) -> str:
    """Where a Dagster run is: `queued` in Celery, or `running`, renewed; missing means lost."""
    return f"vyvo:run:{run_id}"
