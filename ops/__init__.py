"""Dagster ops and jobs that make no asset."""

from ops.maintenance import rebuild_stale, retention

__all__ = ["MAINTENANCE_JOBS"]

MAINTENANCE_JOBS = [retention, rebuild_stale]
