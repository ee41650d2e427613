"""Every Redis key, channel and consumer group, in one place.

Postgres is the truth: all that stands under these keys can be rebuilt from rows.
"""

from typing import Final
from uuid import UUID

from vyvo_dagster.domain.job import Priority

__all__ = [
    "ALL_EVENTS",
    "BUILDS",
    "EPOCH",
    "GROUP_AGENT",
    "GROUP_DAGSTER",
    "GROUP_ORCHESTRATOR",
    "WAKE",
    "build_log",
    "job_events",
    "jobs",
    "node",
    "run_lease",
]

GROUP_ORCHESTRATOR: Final = "orchestrator"
GROUP_AGENT: Final = "agent"
GROUP_DAGSTER: Final = "dagster"

BUILDS: Final = "vyvo:builds"
"""Stream of builds to launch; fields: id."""
WAKE: Final = "vyvo:wake"
"""Pub/sub channel: something that dispatch waits for may have changed."""
ALL_EVENTS: Final = "vyvo:events"
"""Stream of all events, capped; one reader per api process feeds its SSE clients from it."""
EPOCH: Final = "vyvo:epoch"
"""Set while the streams hold what the rows say; missing after a flush, which asks for a rebuild."""


def jobs(model_id: str, priority: Priority) -> str:
    """Stream of queued jobs of one model and priority class; fields: id, tenant."""
    return f"vyvo:jobs:{model_id}:{priority}"


def node(node_id: UUID | str) -> str:
    """Stream of orders for one node's agent; fields: kind (run, cancel, sync), body (JSON)."""
    return f"vyvo:node:{node_id}"


def job_events(job_id: UUID | str) -> str:
    """Event stream of one job, capped at 1,024; fields: kind, data (JSON)."""
    return f"vyvo:events:{job_id}"


def build_log(build_id: UUID | str) -> str:
    """Log lines of a build under way; fields: n, t, step, text, and on the last entry end."""
    return f"vyvo:build-log:{build_id}"


def run_lease(run_id: str) -> str:
    """Where a Dagster run is: `queued` in Celery, or `running`, renewed; missing means lost."""
    return f"vyvo:run:{run_id}"
