"""Reports of one attempt under way: started, progress, log lines; coalesced."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final
from uuid import UUID

from vyvo_dagster.agent.reports import Answer, Reports
from vyvo_dagster.agent.spans import record_runner_span
from vyvo_dagster.agent.texts import clean
from vyvo_dagster.errors import NotFound, StaleAttempt, VyvoError
from vyvo_dagster.protocol.job import ProgressReport, ReportItem

__all__ = ["ProgressReporter"]

_log = logging.getLogger(__name__)

_INTERVAL: Final = 0.2
_LINES_PER_REPORT: Final = 500
_LINES_KEPT: Final = 5000
_LINE_CHARS: Final = 16000
# Of one attempt; what a runner tells must not fill the way to the collector.
_SPANS: Final = 128


class ProgressReporter:
    """Tells the control plane of one attempt, at most once per 200 ms, one report at a time.

    What comes meanwhile goes with the next. Log lines that come faster than they go are kept up to
    a bound; then the oldest are dropped and that is said.

    Args:
        reports: the way to the control plane.
        job_id, attempt: of what.
        stale: called when the attempt is no longer this node's.
        canceled: called when the control plane says that its cancel was asked for.
    """

    def __init__(
        self,
        reports: Reports,
        job_id: UUID,
        attempt: int,
        stale: Callable[[], None],
        canceled: Callable[[], None],
    ) -> None:
        self._reports = reports
        self._job_id = job_id
        self._attempt = attempt
        self._stale = stale
        self._canceled = canceled
        self._fraction: float | None = None
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._spans = 0
        self._on_its_way = False
        self._ended = False
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Report the start."""
        self._put(ProgressReport(attempt=self._attempt))

    def on_started(self) -> None:
        """The runner took the prediction; the first report has said so."""

    def on_progress(self, fraction: float) -> None:
        """Note how far the prediction is, 0 to 1."""
        self._fraction = fraction
        self._report()

    def on_log(self, text: str) -> None:
        """Note lines that the predictor wrote."""
        for line in clean(text).splitlines():
            if len(self._lines) >= _LINES_KEPT:
                self._lines.popleft()
                self._dropped += 1
            self._lines.append(line[:_LINE_CHARS])
        self._report()

    def on_span(self, text: str) -> None:
        """Tell the trace of a part of the prediction, which is as the runner says."""
        if self._spans < _SPANS:
            self._spans += 1
            record_runner_span(text)

    def finish(self) -> None:
        """Report what is left. What ends the attempt goes the same way, behind it."""
        self._ended = True
        self.abandon()
        while self._lines or self._fraction is not None:
            self._put(self._rest())

    def abandon(self) -> None:
        """Report nothing more by itself."""
        self._ended = True
        if self._pause is not None:
            self._pause.cancel()

    def _report(self) -> None:
        """Report what there is, unless a report is under way or went just now."""
        if self._on_its_way or self._pause is not None or self._ended:
            return
        if self._lines or self._fraction is not None:
            self._put(self._rest())
            self._pause = asyncio.get_running_loop().call_later(_INTERVAL, self._paused)

    def _paused(self) -> None:
        self._pause = None
        self._report()

    def _rest(self) -> ProgressReport:
        count = min(len(self._lines), _LINES_PER_REPORT)
        lines = [self._lines.popleft() for _ in range(count)]
        if self._dropped:
            lines.insert(0, f"[{self._dropped} lines were dropped]")
            self._dropped = 0
        fraction, self._fraction = self._fraction, None
        return ProgressReport(attempt=self._attempt, fraction=fraction, logs=lines)

    def _put(self, report: ProgressReport) -> None:
        self._on_its_way = True
        answer = self._reports.put(ReportItem(job_id=self._job_id, progress=report))
        answer.add_done_callback(self._answered)

    def _answered(self, future: asyncio.Future[Answer]) -> None:
        self._on_its_way = False
        answer = future.result()
        if isinstance(answer, VyvoError):
            _log.debug("job %s attempt %d: %s", self._job_id, self._attempt, answer.detail)
            if isinstance(answer, StaleAttempt | NotFound):
                self._stale()
        elif answer.cancel_requested:
            self._canceled()
        self._report()
