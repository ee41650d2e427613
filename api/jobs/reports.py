"""What agents report of attempts, fenced by the attempt's number.

A batch is one transaction: its jobs' rows are locked, each report is judged from them in order, and
what changed is written by one statement for each kind. A single report is a batch of one. This
knows nothing of HTTP: every front that takes reports stands on it.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from api.announcer import Announcer
from api.jobs.judgement import EndedJob, IsOutput, Judgement, Told
from vyvo_dagster.dispatch.relay import Relay
from vyvo_dagster.domain.job import JobState
from vyvo_dagster.errors import (
    InvalidInput,
    InvalidReport,
    NotFound,
    StaleAttempt,
    Unavailable,
    VyvoError,
)
from vyvo_dagster.protocol.job import MalformedReport, ReportItem
from vyvo_dagster.store.database import Database
from vyvo_dagster.telemetry import metrics, tracing

__all__ = ["Reports", "Taken"]

_log = logging.getLogger(__name__)

_INTERNAL: Final = "the server failed; the error is in its log"


@dataclass(frozen=True, slots=True)
class Taken:
    """A report was taken, now or before; what its job is."""

    status: JobState
    cancel_requested: bool = False


class Reports:
    """Takes reports.

    Args:
        database: where jobs are.
        announcer: tells clients and dispatch.
        relay: streams what was queued again.
        is_output: whether an artifact may be at a location.
    """

    def __init__(
        self, database: Database, announcer: Announcer, relay: Relay, is_output: IsOutput
    ) -> None:
        self._database = database
        self._announcer = announcer
        self._relay = relay
        self._is_output = is_output

    async def take(
        self, node_id: UUID, reports: Sequence[ReportItem | MalformedReport]
    ) -> list[Taken | VyvoError]:
        """Take reports of one node in order; each gets its own answer, or the error of it alone.

        The errors: StaleAttempt (not the job's current attempt on this node: nothing was changed),
        NotFound, InvalidReport (it cannot be used; the attempt that it was to end has failed).

        Raises:
            Unavailable: a server is away; nothing was taken, or all of it, and a repeat tells.
        """
        try:
            return await self._together(node_id, reports)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - one report must not hold back a node's others
            if len(reports) == 1:
                return [await self._refused(node_id, reports[0], error)]
            _log.warning("a batch of %d reports is taken one by one: %s", len(reports), error)
        return [(await self.take(node_id, [each]))[0] for each in reports]

    async def take_one(self, node_id: UUID, report: ReportItem) -> Taken:
        """Take one report.

        Raises:
            StaleAttempt, NotFound, InvalidReport, Unavailable: as `take` says.
        """
        (answer,) = await self.take(node_id, [report])
        if isinstance(answer, VyvoError):
            raise answer
        return answer

    async def _together(
        self, node_id: UUID, reports: Sequence[ReportItem | MalformedReport]
    ) -> list[Taken | VyvoError]:
        began = time.time()
        async with self._database.transaction() as store:
            judgement = await Judgement.begin(store, node_id, reports, self._is_output)
            answers = [await self._answer(judgement, each) for each in reports]
            await judgement.write()
        if tracing.on():
            _trace(judgement.told.ended, began)
        await self._tell(judgement.told)
        return answers

    async def _answer(
        self, judgement: Judgement, report: ReportItem | MalformedReport
    ) -> Taken | VyvoError:
        try:
            return Taken(*await judgement.judge(report))
        except (StaleAttempt, NotFound, InvalidReport) as error:
            return error

    async def _refused(
        self, node_id: UUID, report: ReportItem | MalformedReport, error: Exception
    ) -> VyvoError:
        """Of one that cannot be stored: the attempt that it ends has failed, and says why."""
        if not isinstance(error, InvalidInput):
            _log.error("a report broke", exc_info=error)
            return error if isinstance(error, VyvoError) else VyvoError(_INTERNAL)
        refused = MalformedReport(detail=error.detail)
        if isinstance(report, ReportItem) and report.completion is not None:
            refused = MalformedReport(
                job_id=report.job_id, attempt=report.completion.attempt, ends=True,
                detail=error.detail,
            )  # fmt: skip
        answer = (await self._together(node_id, [refused]))[0]
        return answer if isinstance(answer, VyvoError) else InvalidReport(error.detail)

    async def _tell(self, told: Told) -> None:
        if told.requeued:
            self._relay.kick()
        if told.ended:
            await self._announcer.report(told.events)
        else:
            await self._announcer.events(told.events)
        await self._announcer.changes(told.requeued)
        _count(told.ended)


def _trace(ended: Sequence[EndedJob], began: float) -> None:
    """Tell, in each job's trace, how long its end took to be written; one batch writes many."""
    now = time.time()
    for job in ended:
        parent = tracing.valid(job.traceparent)
        if parent is not None:
            attributes = {"vyvo.status": str(job.state), "vyvo.model": job.model_id}
            tracing.record("complete job", parent, began, now, kind="server", attributes=attributes)


def _count(ended: Sequence[EndedJob]) -> None:
    """Count a batch; a label is looked up once, since that takes longer than what is done with it."""
    for (model_id, state), count in Counter((job.model_id, job.state) for job in ended).items():
        metrics.JOBS.labels(model_id, str(state)).inc(count)
    latency = {
        key: metrics.JOB_LATENCY.labels(*key)
        for key in {(job.model_id, phase) for job in ended for phase in job.seconds}
    }
    for job in ended:
        for phase, seconds in job.seconds.items():
            latency[job.model_id, phase].observe(seconds)
