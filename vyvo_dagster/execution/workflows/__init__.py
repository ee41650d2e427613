"""Workflow runs in Dagster: their jobs, what its event log is told, and how its UI starts one."""
