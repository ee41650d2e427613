"""Tells Dagster of workflow runs, from their rows, in batches.

It holds up nothing: the engine never waits for it, and Dagster may be away. Each row says by its
revision that there is something to tell, and up to which revision it was told. What the log has of a
run is read when the run is first met, so that a crash between the log's commit and the row's doubles
nothing.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.execution.api import create_execution_plan
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.snap import snapshot_from_execution_plan

from vyvo_dagster.domain.workflow.definition import Definition, parse
from vyvo_dagster.domain.workflow.run import Step
from vyvo_dagster.domain.workflow.state import RunState
from vyvo_dagster.execution.workflows.event_log import EventLog, RunWrite
from vyvo_dagster.execution.workflows.events import Identity, RunEvents, identity
from vyvo_dagster.execution.workflows.jobs import build_job, run_config_of
from vyvo_dagster.execution.workflows.names import LOCATION, REPOSITORY, RUN_TAG
from vyvo_dagster.store.workflow_records import WorkflowRun, WorkflowVersion
from vyvo_dagster.telemetry import metrics

__all__ = ["Reported", "WorkflowReporter", "origin_of"]

log = logging.getLogger(__name__)

_JOBS: Final = 256
_RUNS: Final = 20_000

_STATUS: Final[Mapping[RunState, DagsterRunStatus]] = {
    RunState.QUEUED: DagsterRunStatus.STARTING,
    RunState.RUNNING: DagsterRunStatus.STARTED,
    RunState.SUCCEEDED: DagsterRunStatus.SUCCESS,
    RunState.FAILED: DagsterRunStatus.FAILURE,
    RunState.CANCELED: DagsterRunStatus.CANCELED,
}
_ENDED: Final = frozenset(
    {DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED}
)

Reported = Sequence[tuple[WorkflowRun, Mapping[str, Step]]]
"""Runs to report, each with its steps by key."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A version's job, as its runs refer to it."""

    name: str
    definition: Definition
    tags: Mapping[str, str]
    snapshot_id: str
    plan_id: str


def origin_of(code_server: str | None, job: str) -> RemoteJobOrigin | None:
    """Where a run's job is, which the UI links to; None where no code server is named."""
    if code_server is None:
        return None
    host, _, port = code_server.rpartition(":")
    location = GrpcServerCodeLocationOrigin(host, int(port), location_name=LOCATION)
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, REPOSITORY), job)


class WorkflowReporter:
    """Writes what there is to tell. One at a time has the log's lock; others stand by.

    Args:
        url: of the api, for links.
        code_server: host:port of the location of the workflows' jobs.
    """

    def __init__(
        self, instance: DagsterInstance, event_log: EventLog, *, url: str | None,
        code_server: str | None,
    ) -> None:  # fmt: skip
        self._instance = instance
        self._log = event_log
        self._url = url
        self._code_server = code_server
        self._jobs: OrderedDict[UUID, _Job] = OrderedDict()
        self._written: OrderedDict[str, set[Identity]] = OrderedDict()
        self._runs: OrderedDict[str, DagsterRun] = OrderedDict()

    def ready(self) -> bool:
        """Whether this process is the one that writes."""
        return self._log.acquire()

    def forget(self) -> None:
        """The connection may be lost: what was written is to be read from the log again."""
        self._log.release()
        self._written.clear()
        self._runs.clear()

    def report(self, runs: Reported, versions: Mapping[UUID, WorkflowVersion]) -> int:
        """Write what the log has not yet of `runs`; how many entries that were.

        Raises:
            sqlalchemy.exc.DBAPIError: call `forget`, and report them again.
        """
        began = time.perf_counter()
        ids = [_run_id(run) for run, _ in runs]
        unmet = [run_id for run_id in ids if run_id not in self._written]
        if unmet:
            self._written.update(self._log.written(unmet))
            self._runs.update(self._log.runs(unmet))
        writes = [self._write(run, steps, versions[run.version_id]) for run, steps in runs]
        self._log.write(writes)
        count = 0
        for write in writes:
            run_id = write.run.run_id
            self._written[run_id] |= {identity(entry) for entry in write.entries}
            self._runs[run_id] = write.run
            self._written.move_to_end(run_id)
            if write.run.status in _ENDED:
                del self._written[run_id], self._runs[run_id]
            count += len(write.entries)
        # The log knows what is forgotten here.
        while len(self._written) > _RUNS:
            run_id, _ = self._written.popitem(last=False)
            self._runs.pop(run_id, None)
        metrics.WORKFLOW_EVENTS.inc(count)
        log.debug("%d entries of %d runs in %.3f s", count, len(runs), time.perf_counter() - began)
        return count

    def _write(
        self, run: WorkflowRun, steps: Mapping[str, Step], version: WorkflowVersion
    ) -> RunWrite:
        run_id, job = _run_id(run), self._job(version)
        events = RunEvents(run, job.definition, run_id, job.name, self._url)
        written = self._written[run_id]
        fresh = [entry for entry in events.entries(steps) if identity(entry) not in written]
        shown = self._runs.get(run_id) or self._new_run(run, run_id, job)
        status = _STATUS[run.state]
        if run.cancel_requested_at is not None and status not in _ENDED:
            status = DagsterRunStatus.CANCELING
        return RunWrite(
            shown.with_status(status), fresh, run.created_at, run.started_at, run.completed_at
        )

    def _new_run(self, run: WorkflowRun, run_id: str, job: _Job) -> DagsterRun:
        return DagsterRun(
            job_name=job.name, run_id=run_id, run_config=run_config_of(run.inputs),
            tags={**job.tags, RUN_TAG: str(run.id), "vyvo/trigger": str(run.trigger_kind)},
            job_snapshot_id=job.snapshot_id, execution_plan_snapshot_id=job.plan_id,
            remote_job_origin=origin_of(self._code_server, job.name),
        )  # fmt: skip

    def _job(self, version: WorkflowVersion) -> _Job:
        kept = self._jobs.get(version.id)
        if kept is not None:
            self._jobs.move_to_end(version.id)
            return kept
        made = build_job(version)
        snapshot = made.get_job_snapshot()
        storage = self._instance.run_storage
        if not storage.has_job_snapshot(snapshot.snapshot_id):
            storage.add_job_snapshot(snapshot)
        plan = snapshot_from_execution_plan(
            create_execution_plan(made, run_config=run_config_of({})), snapshot.snapshot_id
        )
        plan_id = storage.add_execution_plan_snapshot(plan)
        job = _Job(made.name, parse(version.definition), made.tags, snapshot.snapshot_id, plan_id)
        self._jobs[version.id] = job
        while len(self._jobs) > _JOBS:
            self._jobs.popitem(last=False)
        return job


def _run_id(run: WorkflowRun) -> str:
    return run.dagster_run_id or str(run.id)
