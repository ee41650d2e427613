"""Reports of one attempt under way: started, progress, log lines; coalesced."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Final
from uuid import UUID

from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.errors import Conflict, NotFound, StaleAttempt, VyvoError
from vyvo_dagster.protocol.job import ProgressReport

__all__ = ["ProgressReporter"]

_log = logging.getLogger(__name__)

_INTERVAL: Final = 0.2
_LINES_PER_REPORT: Final = 500
_LINES_KEPT: Final = 5000
_LINE_CHARS: Final = 16000


class ProgressReporter:
    """Tells the control plane of one attempt, at most once per 200 ms.

    A report that is lost is not repeated: the next one says more. Log lines stay until they are
    delivered; when they come faster than they go, the oldest are dropped and that is said.

    Args:
        control_plane: whom to tell.
        job_id, attempt: of what.
        stale: called when the attempt is no longer this node's.
    """

    def __init__(
        self, control_plane: ControlPlane, job_id: UUID, attempt: int, stale: Callable[[], None]
    ) -> None:
        self._control_plane = control_plane
        self._job_id = job_id
        self._attempt = attempt
        self._stale = stale
        self._fraction: float | None = None
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._dirty = asyncio.Event()
        self._last = asyncio.Event()

    def on_started(self) -> None:
        """The runner took the prediction; the first report has said so."""

    def on_progress(self, fraction: float) -> None:
        """Note how far the prediction is, 0 to 1."""
        self._fraction = fraction
        self._dirty.set()

    def on_log(self, text: str) -> None:
        """Note lines that the predictor wrote."""
        for line in text.replace("\0", "\ufffd").splitlines():
            if len(self._lines) >= _LINES_KEPT:
                self._lines.popleft()
                self._dropped += 1
            self._lines.append(line[:_LINE_CHARS])
        self._dirty.set()

    async def run(self) -> None:
        """Report the start at once, then what comes, until `finish`."""
        await self._report()
        while not self._last.is_set():
            await self._dirty.wait()
            if not self._last.is_set():
                await self._report()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_INTERVAL):
                        await self._last.wait()
        while self._lines or self._fraction is not None:
            if not await self._report():
                return

    async def finish(self, task: asyncio.Task[None], seconds: float) -> None:
        """Have `task`, which is `run`, deliver what is left, for at most `seconds`."""
        self._last.set()
        self._dirty.set()
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            task.cancel()

    async def _report(self) -> bool:
        self._dirty.clear()
        count = min(len(self._lines), _LINES_PER_REPORT)
        lines = [self._lines[i] for i in range(count)]
        if self._dropped:
            lines.insert(0, f"[{self._dropped} lines were dropped]")
        fraction, dropped = self._fraction, self._dropped
        self._fraction = None
        report = ProgressReport(attempt=self._attempt, fraction=fraction, logs=lines)
        try:
            await self._control_plane.progress(self._job_id, report)
        except (StaleAttempt, NotFound) as error:
            _log.debug("job %s attempt %d: %s", self._job_id, self._attempt, error.detail)
            self._stale()
            return False
        except Conflict as error:
            _log.debug("job %s attempt %d: %s", self._job_id, self._attempt, error.detail)
            return False
        except VyvoError as error:
            _log.debug("job %s attempt %d: %s", self._job_id, self._attempt, error.detail)
            if self._fraction is None:
                self._fraction = fraction
            return False
        # New lines may have pushed out some of those just delivered.
        for _ in range(max(count - (self._dropped - dropped), 0)):
            self._lines.popleft()
        self._dropped -= dropped
        return True
