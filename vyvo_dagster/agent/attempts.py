"""All attempts that this node holds in one session, and the reports of their ends."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Coroutine, Iterable
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.agent.attempt import Attempt, AttemptNode, StopReason
from vyvo_dagster.domain.job import PREDICTION_FAILED
from vyvo_dagster.errors import Conflict, InvalidInput, InvalidReport, NotFound, VyvoError
from vyvo_dagster.protocol.job import (
    AttemptStatus,
    CancelOrder,
    CompletionReport,
    JobError,
    ReportItem,
    RunOrder,
)
from vyvo_dagster.protocol.node import AttemptRef
from vyvo_dagster.telemetry import logs, metrics, tracing

__all__ = ["Attempts"]

_log = logging.getLogger(__name__)

_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 5.0
_REMEMBERED: Final = 4096
_INTERNAL_ERRORS: Final = 6

_Key = tuple[UUID, int]


class Attempts:
    """Attempts by job and number; each is a task of `group` until its end is reported.

    Args:
        node: what each attempt needs.
        group: owner of the tasks.
        changed: event set when the control plane should hear from this node soon.
    """

    def __init__(self, node: AttemptNode, group: asyncio.TaskGroup, changed: asyncio.Event) -> None:
        self._node = node
        self._group = group
        self._changed = changed
        self._held: dict[_Key, Attempt] = {}
        self._newest: dict[UUID, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: OrderedDict[_Key, None] = OrderedDict()

    def running(self) -> list[AttemptRef]:
        """What a heartbeat names, to renew the leases; an end not yet reported is named too."""
        return [
            AttemptRef(job_id=job_id, attempt=number)
            for (job_id, number), attempt in self._held.items()
            if attempt.reason is not StopReason.FENCED
        ]

    def take(self, order: RunOrder) -> None:
        """Run an order, unless it or a newer one of its job is held or has ended here already."""
        key = (order.job_id, order.attempt)
        newest = self._newest.get(order.job_id, 0)
        if key in self._held or key in self._ended or order.attempt < newest:
            return
        if older := self._held.get((order.job_id, newest)):
            older.stop(StopReason.FENCED)
        self._newest[order.job_id] = order.attempt
        attempt = self._held[key] = Attempt(order, self._node)
        metrics.AGENT_RUNNING.set(len(self._held))
        self._own(self._run(key, attempt), f"attempt {order.job_id}-{order.attempt}")

    def cancel(self, order: CancelOrder) -> None:
        """Cancel an attempt; one that never came is reported canceled all the same."""
        key = (order.job_id, order.attempt)
        if key in self._held:
            self._held[key].stop(StopReason.CANCELED)
        elif key not in self._ended:
            self._remember(key)
            report = CompletionReport(attempt=order.attempt, status=AttemptStatus.CANCELED)
            self._own(self._complete(order.job_id, report, None), f"cancel {order.job_id}")

    def fence(self, refs: Iterable[AttemptRef], grace: float | None = None) -> None:
        """End attempts that are this node's no more, without a report; `grace` as `Attempt.stop`'s."""
        for ref in refs:
            if attempt := self._held.get((ref.job_id, ref.attempt)):
                _log.info("job %s attempt %d is fenced", ref.job_id, ref.attempt)
                attempt.stop(StopReason.FENCED, grace)

    def fence_all(self) -> None:
        """End everything without a report: the session that held it is over."""
        for attempt in self._held.values():
            attempt.stop(StopReason.FENCED)

    async def hand_back(self, seconds: float) -> None:
        """End everything in order and report it, in parallel, for at most `seconds`."""
        for attempt in self._held.values():
            attempt.stop(StopReason.LEAVING)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: _Key, attempt: Attempt) -> None:
        order = attempt.order
        ids = {"job_id": str(order.job_id), "attempt": order.attempt}
        try:
            logs.bind(**ids)
            with tracing.span(
                "run attempt", order.traceparent, kind="consumer",
                attributes={f"vyvo.{name}": value for name, value in ids.items()},
            ) as span:  # fmt: skip
                report = await attempt.outcome()
                _count(order.model_id, report)
                if report is None:
                    tracing.fail(span, "fenced")
                else:
                    report.traceparent = tracing.traceparent()
                    if report.error is not None:
                        tracing.fail(span, report.error.code)
                    await self._complete(key[0], report, attempt)
        finally:
            self._remember(key)
            del self._held[key]
            metrics.AGENT_RUNNING.set(len(self._held))
            if self._newest.get(key[0]) == key[1]:
                del self._newest[key[0]]

    async def _complete(
        self, job_id: UUID, report: CompletionReport, attempt: Attempt | None
    ) -> None:
        """Report an end until the control plane has taken or refused it."""
        delay, broken = _FIRST_DELAY, 0
        while attempt is None or attempt.reason is not StopReason.FENCED:
            try:
                await self._node.reports.send(ReportItem(job_id=job_id, completion=report))
            except (Conflict, NotFound) as error:
                _log.info("job %s attempt %d: %s", job_id, report.attempt, error.detail)
                return
            except InvalidInput as error:
                taken_as_failed = isinstance(error, InvalidReport)
                if taken_as_failed or report.status is not AttemptStatus.SUCCEEDED:
                    _log.error("job %s: the api refuses the report: %s", job_id, error.detail)
                    return
                report = _refused(report, error.detail)
            except VyvoError as error:
                _log.warning("job %s: cannot report its end: %s; trying on", job_id, error.detail)
                # An answer that breaks the api every time must not hold the job for ever.
                broken += type(error) is VyvoError
                if broken == _INTERNAL_ERRORS and report.status is AttemptStatus.SUCCEEDED:
                    report = _refused(report, error.detail)
                if report.status is AttemptStatus.HANDED_BACK:
                    self._changed.set()
            else:
                if report.status is AttemptStatus.HANDED_BACK:
                    self._changed.set()
                return
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)

    def _remember(self, key: _Key) -> None:
        self._ended[key] = None
        while len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)


# Looking a label up takes longer than what is done with it.
_attempts = lru_cache(1024)(metrics.AGENT_ATTEMPTS.labels)
_phases = lru_cache(1024)(metrics.AGENT_PHASES.labels)


def _count(model_id: str, report: CompletionReport | None) -> None:
    status = "fenced" if report is None else str(report.status)
    _attempts(model_id, status).inc()
    for phase, seconds in report.timings.items() if report is not None else ():
        _phases(model_id, phase).observe(seconds)


def _refused(report: CompletionReport, detail: str) -> CompletionReport:
    """The report of a failure that stands for a success which the api does not take."""
    error = JobError(
        code=PREDICTION_FAILED,
        message=f"the api does not take the runner's output: {detail}"[:8000],
    )
    return CompletionReport(
        attempt=report.attempt, status=AttemptStatus.FAILED, error=error, timings=report.timings,
        traceparent=report.traceparent,
    )  # fmt: skip
