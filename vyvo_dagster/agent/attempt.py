"""One attempt of a job on this node, from its order to its report."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar
from uuid import UUID

from pydantic import ValidationError

from vyvo_dagster.agent.assignment import Assignment
from vyvo_dagster.agent.cog_client import (
    OutputTooLarge,
    Prediction,
    PredictionStatus,
    WorkerCrashed,
)
from vyvo_dagster.agent.progress import ProgressReporter
from vyvo_dagster.agent.reports import Reports
from vyvo_dagster.agent.serving import Loaded, NotServing
from vyvo_dagster.agent.texts import clean
from vyvo_dagster.agent.uploads import ArtifactInvalid, Uploader
from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.domain.artifact import artifacts_in
from vyvo_dagster.domain.job import PREDICTION_FAILED, prediction_id
from vyvo_dagster.errors import RunnerFailed, Unavailable, VyvoError
from vyvo_dagster.protocol.job import (
    AttemptStatus,
    CompletionReport,
    JobError,
    ReportedArtifact,
    RunOrder,
)
from vyvo_dagster.telemetry import tracing

__all__ = ["Attempt", "AttemptNode", "StopReason"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE: Final = 10.0
_LEAVING_GRACE: Final = 2.5
_SETTLE_SECONDS: Final = 2.5
_STORE_TRIES: Final = 4
_REPORT_BYTES: Final = 12 << 20
_MESSAGE_CHARS: Final = 8000
_ARTIFACTS: Final = 1024


class StopReason(StrEnum):
    """Why an attempt should end before its prediction does."""

    CANCELED = "canceled"
    FENCED = "fenced"
    """It is no longer this node's: nothing is reported of it any more."""
    LEAVING = "leaving"
    """The agent stops."""
    TIMED_OUT = "timed_out"
    """The prediction took longer than its job may run."""


@dataclass(frozen=True, slots=True)
class AttemptNode:
    """What an attempt needs from its node: whom to tell, where outputs go, and its assignments.

    `find` waits a little for an assignment that is not known yet.
    """

    reports: Reports
    uploader: Uploader
    find: Callable[[UUID], Awaitable[Assignment | None]]


class Attempt:
    """Runs one order; `outcome` is what is to be reported.

    It is one task. What ends it early cuts that task's scope, after the time that it is given.
    """

    def __init__(self, order: RunOrder, node: AttemptNode) -> None:
        self.order = order
        self.reason: StopReason | None = None
        self._node = node
        self._scope: asyncio.Timeout | None = None
        self._winding_down: asyncio.Task[None] | None = None
        self._loaded: Loaded | None = None
        self._uploading = False
        self._prediction_id = prediction_id(str(order.job_id), order.attempt)
        self._taken = time.monotonic()
        self._timings: dict[str, float] = {}

    def stop(self, reason: StopReason, grace: float | None = None) -> None:
        """Ask for its end. Being fenced outweighs, otherwise the first reason holds.

        Args:
            grace: seconds that the prediction has after its cancel; unset, as long as is usual for
                the reason.
        """
        if self.reason is None or reason is StopReason.FENCED:
            self.reason = reason
        if self._scope is not None and self._winding_down is None:
            self._winding_down = asyncio.create_task(self._wind_down(self._scope, grace))

    async def outcome(self) -> CompletionReport | None:
        """Run to the end; None when nothing is to be reported."""
        report: CompletionReport | None = None
        try:
            if self.reason is None:
                async with asyncio.timeout(None) as self._scope:
                    report = await self._work()
        except TimeoutError:
            # Cut: `_work` lets no other error out.
            report = None
        finally:
            self._scope = None
            if self._winding_down is not None:
                await cancel_all([self._winding_down])
        if self.reason is StopReason.FENCED:
            return None
        # What was asked to end and yet succeeded has succeeded; all else ended as it was asked to.
        ended_well = self.reason is None or (
            report is not None and report.status is AttemptStatus.SUCCEEDED
        )
        return report if ended_well and report is not None else self._stopped()

    async def _wind_down(self, scope: asyncio.Timeout, given: float | None) -> None:
        """Cancel on the runner, give it time, kill the runner, and cut."""
        leaving = self.reason is StopReason.LEAVING
        grace = given if given is not None else _LEAVING_GRACE if leaving else _GRACE
        loaded = self._loaded
        if loaded is not None:
            try:
                await loaded.client.cancel(self._prediction_id)
            except Unavailable as error:
                _log.debug("job %s: %s", self.order.job_id, error.detail)
        if loaded is not None or self._uploading:
            await asyncio.sleep(grace)
        if loaded is not None and self._loaded is not None and not leaving:
            _log.warning(
                "job %s does not heed its cancellation: killing its runner", self.order.job_id
            )
            loaded.kill(f"killed: a prediction did not heed its cancel for {grace:g} s")
        _cut(scope)

    async def _work(self) -> CompletionReport:
        try:
            return await self._worked()
        except Exception as error:  # noqa: BLE001 - one job must not end the agent
            _log.exception("job %s attempt %d", self.order.job_id, self.order.attempt)
            return self._report(AttemptStatus.FAILED, error=("internal", repr(error)))

    async def _worked(self) -> CompletionReport:
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
        except RecursionError:
            said = "the output is nested too deep"
            return self._report(AttemptStatus.FAILED, error=(PREDICTION_FAILED, said))

    async def _predicted(self, assignment: Assignment) -> Prediction:
        order = self.order
        reporter = ProgressReporter(
            self._node.reports,
            order.job_id,
            order.attempt,
            lambda: self.stop(StopReason.FENCED),
            lambda: self.stop(StopReason.CANCELED),
        )
        try:
            async with assignment.slot() as loaded:
                self._mark("wait", self._taken)
                now = time.time()
                tracing.record(
                    "wait for slot", tracing.traceparent(), now - self._timings["wait"], now
                )
                began = time.monotonic()
                self._loaded = loaded
                reporter.start()
                limit = asyncio.get_running_loop().call_later(
                    order.timeout_seconds, self.stop, StopReason.TIMED_OUT
                )
                try:
                    with tracing.span("predict", kind="client") as span:
                        prediction = await self._followed(loaded, reporter)
                        if prediction.error is not None:
                            tracing.fail(span, prediction.error)
                    return prediction
                finally:
                    limit.cancel()
                    self._loaded = None
                    self._mark("predict", began)
        finally:
            if self.reason is StopReason.FENCED:
                reporter.abandon()
            else:
                reporter.finish()

    async def _followed(self, loaded: Loaded, reporter: ProgressReporter) -> Prediction:
        """The prediction's end, or the runner's."""
        order = self.order
        # The runner's part of the trace is below this attempt's.
        trace = tracing.traceparent() or order.traceparent
        context = {
            "prediction_id": self._prediction_id,
            "job_id": str(order.job_id),
            "attempt": str(order.attempt),
        }
        if trace is not None:
            context["traceparent"] = trace
        try:
            async with asyncio.timeout(None) as scope:
                with loaded.watched(lambda: _cut(scope)):
                    return await loaded.client.predict(
                        self._prediction_id,
                        order.input,
                        reporter,
                        context=context,
                        traceparent=trace,
                    )
        except TimeoutError:
            raise loaded.gone_error() from None
        except WorkerCrashed as error:
            loaded.kill(error.detail, ordered=False)
            raise
        except VyvoError:
            # A stream breaks a moment before the runner is seen to have ended.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_SECONDS):
                    await loaded.gone.wait()
            if loaded.gone.is_set():
                raise loaded.gone_error() from None
            raise

    async def _reported(self, prediction: Prediction) -> CompletionReport:
        if prediction.status is not PredictionStatus.SUCCEEDED:
            message = prediction.error or "the runner canceled the prediction"
            return self._report(AttemptStatus.FAILED, error=(PREDICTION_FAILED, message))
        began = time.monotonic()
        self._uploading = True
        uploader, order = self._node.uploader, self.order
        given = clean(prediction.output)
        with tracing.span("store outputs") as span:
            output = await _stored(lambda: uploader.externalize(given, order.job_id, order.attempt))
            if prediction.size_bytes > _REPORT_BYTES:
                _check_size(output)
            artifacts = _artifacts(output)
            if artifacts:
                await _stored(lambda: uploader.check(artifacts))
            if span is not None:
                span.set_attribute("vyvo.artifacts", len(artifacts))
        self._mark("upload", began)
        return self._report(AttemptStatus.SUCCEEDED, output=output, artifacts=artifacts)

    def _stopped(self) -> CompletionReport:
        if self.reason is StopReason.TIMED_OUT:
            said = f"the prediction did not end within {self.order.timeout_seconds:g} s"
            return self._report(AttemptStatus.FAILED, error=(str(self.reason), said))
        canceled = self.reason is StopReason.CANCELED
        return self._report(AttemptStatus.CANCELED if canceled else AttemptStatus.HANDED_BACK)

    def _report(
        self,
        status: AttemptStatus,
        *,
        output: Any = None,
        artifacts: list[ReportedArtifact] | None = None,
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


def _cut(scope: asyncio.Timeout) -> None:
    """End the scope now; one that is over stays over."""
    with contextlib.suppress(RuntimeError):
        scope.reschedule(asyncio.get_running_loop().time())


async def _stored(work: Callable[[], Awaitable[T]]) -> T:
    """What the object store gives; one that is away is tried again for a while.

    Raises:
        RunnerFailed: it stayed away.
    """
    for left in reversed(range(_STORE_TRIES)):
        try:
            return await work()
        except* Unavailable as group:
            if not left:
                raise RunnerFailed(f"an output cannot be stored: {group.exceptions[0]}") from group
        await asyncio.sleep(0.5 * 2 ** (_STORE_TRIES - left))
    raise AssertionError("unreachable")


def _check_size(output: Any) -> None:
    size = len(json.dumps(output))
    if size > _REPORT_BYTES:
        raise OutputTooLarge(
            f"the output is {size} bytes without its files; at most {_REPORT_BYTES} are kept: "
            "upload large outputs and answer their artifacts"
        )


def _artifacts(output: Any) -> list[ReportedArtifact]:
    try:
        found = [ReportedArtifact.model_validate(a) for a in artifacts_in(output)]
    except (ValidationError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:500]
        raise ArtifactInvalid(f"the runner's output holds a malformed artifact: {said}") from error
    if len(found) > _ARTIFACTS:
        raise ArtifactInvalid(f"the output holds {len(found)} artifacts; at most {_ARTIFACTS}")
    return found
