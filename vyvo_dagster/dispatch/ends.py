"""Counts of jobs that ended otherwise than by a report of their node, which the reports count."""

from collections.abc import Iterable

from vyvo_dagster.domain.job import JOB
from vyvo_dagster.store.records import Job
from vyvo_dagster.telemetry import metrics

__all__ = ["count_ends"]


def count_ends(jobs: Iterable[Job]) -> None:
    """Count those of `jobs` that have ended. Call it once the transaction that ended them is committed."""
    for job in jobs:
        if job.state not in JOB.terminal or job.completed_at is None:
            continue
        metrics.JOBS.labels(job.model_id, str(job.state)).inc()
        spans = {"total": job.completed_at - job.created_at}
        if job.dispatched_at is None:
            spans["queue"] = spans["total"]
        else:
            spans["queue"] = job.dispatched_at - job.created_at
            spans["run"] = job.completed_at - job.dispatched_at
        for phase, span in spans.items():
            metrics.JOB_LATENCY.labels(job.model_id, phase).observe(span.total_seconds())
