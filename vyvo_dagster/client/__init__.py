"""Typed clients of the REST api: `Client`, and `AsyncClient` with the same methods, awaited.

Needs nothing of the servers: `pip install vyvo-dagster` alone. Errors are those of
`vyvo_dagster.errors`.
"""

from vyvo_dagster.client.aio import AsyncClient
from vyvo_dagster.client.calls import JobSpec
from vyvo_dagster.client.client import Client
from vyvo_dagster.client.models import Event, Job, JobAccepted, JobSummary, Page
from vyvo_dagster.client.retry import RetryPolicy

__all__ = [
    "AsyncClient",
    "Client",
    "Event",
    "Job",
    "JobAccepted",
    "JobSpec",
    "JobSummary",
    "Page",
    "RetryPolicy",
]
