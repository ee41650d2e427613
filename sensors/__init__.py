"""Dagster sensors and schedules: what starts runs, and what follows what happens outside of runs."""

from sensors.build_queue import build_queue
from sensors.host_ops import host_ops
from sensors.node_heartbeats import node_heartbeats
from sensors.pools import node_pools
from sensors.run_status import build_canceled, build_failed
from sensors.schedules import (
    artifact_expiry,
    artifact_sweep,
    changed_rebuild,
    daily_collection,
    daily_retention,
    weekly_rebuild,
)
from sensors.workflow_triggers import (
    workflow_artifacts,
    workflow_cron,
    workflow_model_versions,
)

__all__ = ["SCHEDULES", "SENSORS"]

SENSORS = [
    build_queue, build_failed, build_canceled, node_heartbeats, host_ops, node_pools,
    workflow_cron, workflow_artifacts, workflow_model_versions,
]  # fmt: skip
SCHEDULES = [
    daily_retention, daily_collection, weekly_rebuild, changed_rebuild, artifact_expiry,
    artifact_sweep,
]  # fmt: skip
