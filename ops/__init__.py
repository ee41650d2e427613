"""Dagster ops and jobs that make no asset."""

from ops.artifacts import collect_artifacts
from ops.collection import collect_unreferenced
from ops.maintenance import rebuild_stale, retention
from ops.runner_command import run_in_runner

__all__ = ["HOST_JOBS", "MAINTENANCE_JOBS"]

HOST_JOBS = [run_in_runner]
MAINTENANCE_JOBS = [retention, rebuild_stale, collect_artifacts, collect_unreferenced]
