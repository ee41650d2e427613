"""One attempt of a job on this node, from its order to its report."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from pydantic import ValidationError

from vyvo_dagster.agent.assignment import Assignment
from vyvo_dagster.agent.cog_client import Prediction, PredictionStatus
from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.agent.progress import ProgressReporter
from vyvo_dagster.agent.serving import Loaded, NotServing
from vyvo_dagster.agent.uploads import Uploader, clean
from vyvo_dagster.domain.artifact import artifacts_in
from vyvo_dagster.domain.job import prediction_id
from vyvo_dagster.errors import RunnerFailed, Unavailable, VyvoError
from vyvo_dagster.protocol.job import Artifact, AttemptStatus, CompletionReport, JobError, RunOrder

__all__ = ["Attempt", "AttemptNode", "StopReason"]

_log = logging.getLogger(__name__)

_GRACE: Final = 10.0
_LEAVING_GRACE: Final = 2.5
_SETTLE_SECONDS: Final = 2.5
_LAST_WORDS: Final = 3.0
_LEAVING_WORDS: Final = 0.5
_UPLOAD_TRIES: Final = 4
_MESSAGE_CHARS: Final = 8000


class StopReason(StrEnum):
    """Why an attempt should end before its prediction does."""

    CANCELED = "canceled"
    FENCED = "fenced"
    """It is no longer this node's: nothing is reported of it any more."""
    LEAVING = "leaving"
    """The agent stops."""


@dataclass(frozen=True, slots=True)
class AttemptNode:
    """What an attempt needs from its node: whom to tell, where outputs go, and its assignments.

    `find` waits a little for an assignment that is not known yet.
    """

    control_plane: ControlPlane
    uploader: Uploader
    find: Callable[[UUID], Awaitable[Assignment | None]]


class Attempt:
    """Runs one order; `outcome` is what is to be reported."""

    def __init__(self, order: RunOrder, node: AttemptNode) -> None:
        self.order = order
        self.reason: StopReason | None = None
        self._node = node
        self._stop = asyncio.Event()
        self._loaded: Loaded | None = None
        self._uploading = False
        self._prediction_id = prediction_id(str(order.job_id), order.attempt)
        self._taken = time.monotonic()
        self._timings: dict[str, float] = {}

    def stop(self, reason: StopReason) -> None:
        """Ask for its end. Being fenced outweighs, otherwise the first reason holds."""
        if self.reason is None or reason is StopReason.FENCED:
            self.reason = reason
        self._stop.set()

    async def outcome(self) -> CompletionReport | None:
        """Run to the end; None when nothing is to be reported."""
        work = asyncio.create_task(self._work())
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await self._wind_down(work)
        finally:
            stop.cancel()
            work.cancel()
            await asyncio.wait({work})
        if self.reason is StopReason.FENCED:
            return None
        if work.cancelled():
            return self._stopped()
        report = work.result()
        # What was asked to end and yet succeeded has succeeded; all else ended as it was asked to.
        ended_well = self.reason is None or report.status is AttemptStatus.SUCCEEDED
        return report if ended_well else self._stopped()

    async def _wind_down(self, work: "asyncio.Task[CompletionReport]") -> None:
        """Cancel on the runner, give it time, then kill the runner."""
        leaving = self.reason is StopReason.LEAVING
        grace = _LEAVING_GRACE if leaving else _GRACE
        loaded = self._loaded
        if loaded is None:
            if self._uploading:
                await asyncio.wait({work}, timeout=grace)
            return
        try:
            await loaded.client.cancel(self._prediction_id)
        except Unavailable as error:
            _log.debug("job %s: %s", self.order.job_id, error.detail)
        await asyncio.wait({work}, timeout=grace)
        if self._loaded is not None and not leaving:
            _log.warning(
                "job %s does not heed its cancellation: killing its runner", self.order.job_id
            )
            loaded.kill(f"killed: a canceled prediction did not end within {grace:.0f} s")

    async def _work(self) -> CompletionReport:
        try:
            assignment = await self._node.find(self.order.assignment_id)
            if assignment is None:
                raise NotServing(f"assignment {self.order.assignment_id} is not on this node")
            return await self._reported(await self._predicted(assignment))
        except NotServing as error:
            _log.info("job %s is handed back: %s", self.order.job_id, error.detail)
            return self._report(AttemptStatus.HANDED_BACK)
        except Unavailable as error:
            return self._report(AttemptStatus.FAILED, error=("runner_unreachable", error.detail))
        except VyvoError as error:
            return self._report(AttemptStatus.FAILED, error=(error.code, error.detail))
        except Exception as error:  # noqa: BLE001 - one job must not end the agent
            _log.exception("job %s attempt %d", self.order.job_id, self.order.attempt)
            return self._report(AttemptStatus.FAILED, error=("internal", repr(error)))

    async def _predicted(self, assignment: Assignment) -> Prediction:
        order = self.order
        reporter = ProgressReporter(
            self._node.control_plane,
            order.job_id,
            order.attempt,
            lambda: self.stop(StopReason.FENCED),
        )
        reports: asyncio.Task[None] | None = None
        try:
            async with assignment.slot() as loaded:
                self._mark("wait", self._taken)
                began = time.monotonic()
                self._loaded = loaded
                reports = asyncio.create_task(reporter.run())
                try:
                    return await self._followed(loaded, reporter)
                finally:
                    self._loaded = None
                    self._mark("predict", began)
        finally:
            # Not in the slot: the next prediction need not wait for this one's last words.
            if reports is not None and self.reason is not StopReason.FENCED:
                await reporter.finish(
                    reports, _LAST_WORDS if self.reason is None else _LEAVING_WORDS
                )
            elif reports is not None:
                reports.cancel()

    async def _followed(self, loaded: Loaded, reporter: ProgressReporter) -> Prediction:
        """The prediction's end, or the runner's."""
        order = self.order
        context = {
            "prediction_id": self._prediction_id,
            "job_id": str(order.job_id),
            "attempt": str(order.attempt),
        }
        if order.traceparent is not None:
            context["traceparent"] = order.traceparent
        prediction = asyncio.create_task(
            loaded.client.predict(
                self._prediction_id,
                order.input,
                reporter,
                context=context,
                traceparent=order.traceparent,
            )
        )
        gone = asyncio.create_task(loaded.gone.wait())
        try:
            await asyncio.wait({prediction, gone}, return_when=asyncio.FIRST_COMPLETED)
            if prediction.done() and prediction.exception() is None:
                return prediction.result()
            # A stream breaks a moment before the runner is seen to have ended.
            await asyncio.wait({gone}, timeout=_SETTLE_SECONDS)
            if loaded.gone.is_set():
                raise loaded.gone_error()
            return prediction.result()
        finally:
            gone.cancel()
            prediction.cancel()
            await asyncio.wait({prediction})

    async def _reported(self, prediction: Prediction) -> CompletionReport:
        if prediction.status is not PredictionStatus.SUCCEEDED:
            message = prediction.error or "the runner canceled the prediction"
            return self._report(AttemptStatus.FAILED, error=("prediction_failed", message))
        began = time.monotonic()
        self._uploading = True
        output = clean(await self._uploaded(prediction.output))
        self._mark("upload", began)
        try:
            artifacts = [Artifact.model_validate(a) for a in artifacts_in(output)]
            return self._report(AttemptStatus.SUCCEEDED, output=output, artifacts=artifacts)
        except (ValidationError, ValueError, TypeError) as error:
            message = f"the runner's output holds a malformed artifact: {error}"
            return self._report(AttemptStatus.FAILED, error=("prediction_failed", message))

    async def _uploaded(self, output: Any) -> Any:
        for left in reversed(range(_UPLOAD_TRIES)):
            try:
                return await self._node.uploader.externalize(
                    output, self.order.job_id, self.order.attempt
                )
            except* Unavailable as group:
                if not left:
                    raise RunnerFailed(
                        f"an output cannot be uploaded: {group.exceptions[0]}"
                    ) from group
            await asyncio.sleep(0.5 * 2 ** (_UPLOAD_TRIES - left))
        raise AssertionError("unreachable")

    def _stopped(self) -> CompletionReport:
        canceled = self.reason is StopReason.CANCELED
        return self._report(AttemptStatus.CANCELED if canceled else AttemptStatus.HANDED_BACK)

    def _report(
        self,
        status: AttemptStatus,
        *,
        output: Any = None,
        artifacts: list[Artifact] | None = None,
        error: tuple[str, str] | None = None,
    ) -> CompletionReport:
        self._mark("total", self._taken)
        said = None
        if error is not None:
            code, message = error
            said = JobError(code=code, message=clean(message)[:_MESSAGE_CHARS])
        return CompletionReport(
            attempt=self.order.attempt,
            status=status,
            output=output,
            artifacts=artifacts or [],
            error=said,
            timings=dict(self._timings),
        )

    def _mark(self, phase: str, since: float) -> None:
        self._timings[phase] = round(time.monotonic() - since, 6)
