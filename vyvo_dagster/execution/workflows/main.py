"""The process that tells Dagster of workflow runs, and of new versions."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import httpx
import psycopg
from dagster import DagsterInstance
from dagster_shared.error import DagsterError
from sqlalchemy.exc import SQLAlchemyError

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.dispatch.service import run_service
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.execution.workflows.event_log import EventLog
from vyvo_dagster.execution.workflows.names import LOCATION
from vyvo_dagster.execution.workflows.reporter import Reported, WorkflowReporter
from vyvo_dagster.settings import Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.notify import WORKFLOW_CHANNEL, listen
from vyvo_dagster.store.workflow_records import WorkflowVersion
from vyvo_dagster.telemetry import metrics
from vyvo_dagster.telemetry.health import probes, serve

__all__ = ["ReportLoop", "run"]

log = logging.getLogger(__name__)

_BATCH: Final = 200
# Between looks at the rows while runs are under way: the second, the longest without news.
_LOOK_SECONDS: Final = (0.25, 2.0)
# And while there are none, where nothing was heard.
_IDLE_SECONDS: Final = 30.0
_AWAY_SECONDS: Final = 2.0
_VERSIONS: Final = 256
_RELOAD: Final = """
mutation ReloadWorkflows($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) { __typename }
}
"""


class ReportLoop:
    """Reads what is to be told, tells it in a thread, and notes that it was told."""

    def __init__(self, database: Database, reporter: WorkflowReporter) -> None:
        self._database = database
        self._reporter = reporter
        self._versions: dict[UUID, WorkflowVersion] = {}
        self._open = True
        self.asked = asyncio.Event()
        """Set when a run was queued or is to be canceled."""

    async def run(self) -> None:
        """Report until canceled; survives servers that go away."""
        pause = 0.0
        while True:
            try:
                if not await asyncio.to_thread(self._reporter.ready):
                    await asyncio.sleep(_AWAY_SECONDS)
                elif await self.turn():
                    pause = 0.0
                else:
                    first, longest = _LOOK_SECONDS
                    pause = min(pause * 1.5 or first, longest)
                    if await self._heard(pause if self._open else _IDLE_SECONDS):
                        pause = 0.0
            except Unavailable as error:
                log.warning("runs are not reported: %s", error)
                await asyncio.sleep(_AWAY_SECONDS)
            except (SQLAlchemyError, DagsterError, OSError) as error:
                log.warning("Dagster is not told: %s", str(error).splitlines()[0])
                await asyncio.to_thread(self._reporter.forget)
                await asyncio.sleep(_AWAY_SECONDS)

    async def _heard(self, seconds: float) -> bool:
        """Wait until a run was queued or is to be canceled; False after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self.asked.wait()
        except TimeoutError:
            return False
        self.asked.clear()
        return True

    async def turn(self) -> int:
        """Report the runs that have changed; how many they were."""
        # Read and let go: a lock on a run would hold up its engine.
        async with self._database.transaction() as store:
            # Asked first: what has ended by then is among those that are read after it.
            self._open = await store.workflow_engine.any_open()
            runs = await store.workflow_runs.unreported(_BATCH)
            steps = await store.workflow_runs.steps_of([run.id for run in runs]) if runs else {}
            for unknown in {run.version_id for run in runs} - self._versions.keys():
                version = await store.workflows.version_by_id(unknown)
                assert version is not None  # a run refers to it
                self._versions[unknown] = version
        now = time.time()
        oldest = min((r.completed_at for r in runs if r.completed_at is not None), default=None)
        metrics.WORKFLOW_REPORT_LAG.set(0.0 if oldest is None else now - oldest.timestamp())
        if not runs:
            return 0
        await self._report([(run, steps[run.id]) for run in runs])
        async with self._database.transaction() as store:
            await store.workflow_runs.reported({run.id: run.revision for run in runs})
        if len(self._versions) > _VERSIONS:
            self._versions.clear()
        return len(runs)

    async def _report(self, runs: Reported) -> None:
        try:
            await asyncio.to_thread(self._reporter.report, runs, self._versions)
        except (SQLAlchemyError, OSError):
            raise
        except Exception:
            if len(runs) > 1:
                for each in runs:
                    await self._report([each])
            else:
                # It must not stand in the way of all others.
                log.exception("run %s cannot be shown in Dagster", runs[0][0].id)


async def listen_for_news(dsn: str, reports: ReportLoop, pushed: asyncio.Event) -> None:
    """Wake who reports of runs, and who tells the webserver of versions, until canceled."""
    while True:
        try:
            async for notice in listen(dsn, WORKFLOW_CHANNEL):
                if notice is None or notice[1].startswith("run:"):
                    reports.asked.set()
                if notice is None or notice[1].startswith("version:"):
                    pushed.set()
        except psycopg.OperationalError as error:
            log.warning("notifications stopped: %s", str(error).splitlines()[0])
            await asyncio.sleep(_AWAY_SECONDS)


async def reload_on_push(pushed: asyncio.Event, url: str | None) -> None:
    """Let the webserver look at the code location again whenever a version is pushed."""
    if url is None:
        return
    graphql = f"{url.rstrip('/')}/graphql"
    body: Mapping[str, Any] = {"query": _RELOAD, "variables": {"name": LOCATION}}
    async with httpx.AsyncClient(timeout=30.0, trust_env=False) as http:
        while True:
            await pushed.wait()
            pushed.clear()
            with contextlib.suppress(httpx.HTTPError):
                await http.post(graphql, json=body)


async def report(settings: Settings, instance: DagsterInstance, stop: asyncio.Event) -> None:
    """Run until `stop` is set."""
    database = Database(settings.postgres_dsn, pool_size=2)
    event_log = EventLog(os.environ["VYVO_DAGSTER_POSTGRES_URL"])
    reporter = WorkflowReporter(
        instance, event_log, url=settings.api_url, code_server=settings.workflow_code_server
    )

    try:
        async with asyncio.TaskGroup() as tasks:
            reports, pushed = ReportLoop(database, reporter), asyncio.Event()
            news = listen_for_news(settings.postgres_dsn, reports, pushed)
            loops = [
                tasks.create_task(reports.run(), name="reports"),
                tasks.create_task(news, name="news"),
                tasks.create_task(reload_on_push(pushed, settings.dagster_url), name="reloads"),
            ]
            if settings.workflow_reporter_port:
                loops.append(
                    tasks.create_task(
                        serve(settings.workflow_reporter_port, probes, settings.metrics_host)
                    )
                )
            log.info("reporting workflow runs to Dagster")
            await stop.wait()
            await cancel_all(loops)
    finally:
        event_log.close()
        await database.close()


def run() -> None:
    """Entry point of `vyvo workflow-reporter`."""
    settings = Settings()
    with DagsterInstance.get() as instance:
        run_service("workflow-reporter", settings, lambda stop: report(settings, instance, stop))
