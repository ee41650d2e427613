"""Whose a job or a workflow run is; it never changes, so it is read once for all streams."""

from typing import Final
from uuid import UUID

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Database

__all__ = ["Owners"]

_KEPT: Final = 10_000


class Owners:
    """Tenants of jobs and workflow runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, str] = {}

    async def of(self, job_id: str) -> str | None:
        """The tenant of a job or run; None where it cannot be told."""
        if job_id not in self._known:
            try:
                async with self._database.transaction() as store:
                    found = await store.jobs.get(
                        UUID(job_id), None
                    ) or await store.workflow_runs.get(UUID(job_id), None)
            except (Unavailable, ValueError):
                return None
            if found is None:
                return None
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[job_id] = found.tenant
        return self._known[job_id]
