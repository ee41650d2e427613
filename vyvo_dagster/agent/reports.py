"""Reports of attempts on their way to the control plane: in order, many in one request.

There is no timer: while one batch is on its way the next gathers, so that a lone report goes at
once and a thousand go together. One request is in flight at a time, which keeps the order; a batch
that the api does not answer is sent again until it does, since the api takes a repeat for the same.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from vyvo_dagster.agent.backoff import Backoff
from vyvo_dagster.agent.control_plane import ControlPlane, problem_error
from vyvo_dagster.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unavailable,
    VyvoError,
)
from vyvo_dagster.protocol.job import BATCH_BYTES, BATCH_ITEMS, ReportItem, ReportResult
from vyvo_dagster.telemetry import metrics

__all__ = ["Reports"]

_log = logging.getLogger(__name__)

_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 2.0

Answer = ReportResult | VyvoError
"""What became of one report."""


@dataclass(frozen=True, slots=True)
class _Queued:
    item: ReportItem
    body: bytes
    answer: asyncio.Future[Answer]


class Reports:
    """The node's one way to report. `run` sends; `node_id` is set by who joins.

    Args:
        control_plane: whom to tell.
    """

    def __init__(self, control_plane: ControlPlane) -> None:
        self.node_id: UUID | None = None
        self._control_plane = control_plane
        self._queue: deque[_Queued] = deque()
        self._due = asyncio.Event()
        self._batches = True

    def put(self, item: ReportItem) -> asyncio.Future[Answer]:
        """Queue a report behind those before it; a canceled answer takes it back if it has not gone.

        One that has no JSON text (an output nested too deep) is answered InvalidInput at once.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            body = item.model_dump_json(exclude_none=True, exclude_defaults=True).encode()
        except ValueError as error:
            answer.set_result(InvalidInput(f"the report cannot be written as JSON: {error}"[:500]))
            return answer
        self._queue.append(_Queued(item, body, answer))
        metrics.AGENT_REPORTS.set(len(self._queue))
        self._due.set()
        return answer

    async def send(self, item: ReportItem) -> ReportResult:
        """Report and wait until it is taken; an api that is away is waited for.

        Raises:
            StaleAttempt, NotFound, InvalidInput, VyvoError: as the api answers this one.
        """
        answer = await self.put(item)
        if isinstance(answer, VyvoError):
            raise answer
        return answer

    async def run(self) -> None:
        """Send until canceled."""
        while True:
            await self._due.wait()
            self._due.clear()
            while batch := self._next():
                await self._deliver(batch)

    def _next(self) -> list[_Queued]:
        batch: list[_Queued] = []
        size = 0
        while self._queue and len(batch) < BATCH_ITEMS:
            size += len(self._queue[0].body)
            if batch and size > BATCH_BYTES:
                break
            queued = self._queue.popleft()
            if not queued.answer.done():
                batch.append(queued)
        metrics.AGENT_REPORTS.set(len(self._queue))
        return batch

    async def _deliver(self, batch: list[_Queued]) -> None:
        """Send until each has an answer, or nobody waits for any."""
        backoff, said = Backoff(_FIRST_DELAY, _LONGEST_DELAY), ""
        while batch := [queued for queued in batch if not queued.answer.done()]:
            try:
                answers = await self._sent(batch)
            except (Unavailable, Unauthenticated, Forbidden, Conflict) as error:
                if error.detail != said:
                    said = error.detail
                    _log.warning("%d reports wait: %s; trying on", len(batch), said)
                await asyncio.sleep(backoff.next())
            except VyvoError as error:
                if len(batch) == 1:
                    _resolve(batch[0], error)
                    return
                # The one that the api cannot take must not hold back the others.
                for queued in batch:
                    await self._deliver([queued])
                return
            else:
                for queued, answer in zip(batch, answers, strict=True):
                    _resolve(queued, answer)
                return

    async def _sent(self, batch: Sequence[_Queued]) -> list[Answer]:
        if self._batches and self.node_id is not None:
            try:
                results = await self._control_plane.report(
                    self.node_id, [q.item for q in batch], [q.body for q in batch]
                )
            except NotFound:
                _log.info("the api takes no batches: reports go one by one")
                self._batches = False
            else:
                return [_answer(result) for result in results]
        return [await self._single(queued.item) for queued in batch]

    async def _single(self, item: ReportItem) -> Answer:
        try:
            if item.completion is not None:
                await self._control_plane.complete(item.job_id, item.completion)
            elif item.progress is not None:
                await self._control_plane.progress(item.job_id, item.progress)
        except (Unavailable, Unauthenticated, Forbidden):
            raise
        except VyvoError as error:
            return error
        return ReportResult()


def _resolve(queued: _Queued, answer: Answer) -> None:
    if not queued.answer.done():
        queued.answer.set_result(answer)


def _answer(result: ReportResult) -> Answer:
    problem = result.problem
    return (
        result if problem is None else problem_error(problem.status, problem.code, problem.detail)
    )
