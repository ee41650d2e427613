"""What every step of a build does around its work: the fence, the log, cancel, and the end.

However a step ends, the build's row, the version's row and the log agree on it:

- it fails: build failed with a sentence that names the step, version a draft again, log closed;
- it is canceled, by the api or in Dagster: build canceled, version a draft again, log closed;
- its worker goes away: nothing is changed, and the retry of the run goes on with the same build.
"""

import errno
import logging
import re
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from dagster import (
    AssetExecutionContext,
    DagsterExecutionInterruptedError,
    DagsterRunStatus,
    Failure,
)

from assets.build_lookup import TakenBuild, take_build
from resources import BuildingResource, ObjectsResource, StoreResource, StreamsResource
from vyvo_dagster.building.log import BuildLog
from vyvo_dagster.building.types import BuildCanceled
from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.errors import VyvoError
from vyvo_dagster.execution.tracing import op_trace
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build, ModelVersion
from vyvo_dagster.streams import keys
from vyvo_dagster.telemetry import logs, metrics, tracing

__all__ = ["BuildRun", "build_step", "count_build", "end_build"]

_log = logging.getLogger(__name__)
_WATCH_SECONDS: Final = 0.5
_ERROR_CHARS: Final = 1000
_SECRET_NAME = re.compile(r"(?i)key|token|secret|password|passwd|credential|auth")

# Steps inside of an asset's own, as their errors begin.
_NAMES_STEP = re.compile(
    r"(?:source|base|sdk|lock|wheels|image|push|check|venv|weights|register)(?::| failed )"
)


@dataclass(frozen=True, slots=True)
class BuildRun:
    """A build that this run executes, while one of its steps runs."""

    build: Build
    version: ModelVersion
    log: BuildLog
    cancel: threading.Event


@contextmanager
def build_step(
    context: AssetExecutionContext,
    step: str,
    store: StoreResource,
    streams: StreamsResource,
    objects: ObjectsResource,
    building: BuildingResource,
) -> Generator[BuildRun]:
    """Take the run's build, and see that it ends as the module says.

    Raises:
        Failure: the step failed, or the build is not this run's to execute.
        DagsterExecutionInterruptedError: it was canceled, or the worker is being stopped.
    """
    taken = take_build(context, store, building)
    build, version = taken.build, taken.version
    secrets = [objects.secret_key, *(v for k, v in build.env.items() if _SECRET_NAME.search(k))]
    trace = op_trace(
        context.run.run_id, context.op_execution_context.get_step_execution_context().step.key
    )
    with ExitStack() as stack:
        stack.enter_context(logs.bound(build_id=str(build.id)))
        stack.enter_context(tracing.within(trace))
        redis = stack.enter_context(streams.connection())
        log = BuildLog(
            str(build.id), building.log_spool(str(build.id)), redis, keys.build_log(build.id),
            objects.store(), secrets=secrets,
        )  # fmt: skip
        stack.callback(log.detach)
        watch = stack.enter_context(_watch(build, context.run.run_id, store, building))
        run = BuildRun(build, version, log, watch.cancel)
        _introduce(taken, log)
        try:
            yield run
        except BuildCanceled:
            if watch.late:
                said = f"{step}: gave up after {building.build_seconds:g} s in all"
                log.line(step, f"failed: {said}")
                end_build(run.build, context.run.run_id, run.log, store, BuildState.FAILED, said)
                raise Failure(description=said, allow_retries=False) from None
            _canceled(context, run, store, step)
            raise DagsterExecutionInterruptedError from None
        except DagsterExecutionInterruptedError:
            if _cancel_asked(context, run, store):
                _canceled(context, run, store, step)
            else:
                log.line(step, "the worker is being stopped; the build goes on when one is back")
            raise
        except Exception as error:
            said = _sentence(step, error)
            log.line(step, f"failed: {said}")
            if not isinstance(error, VyvoError | Failure):
                context.log.exception("the step %s failed", step)
            end_build(run.build, context.run.run_id, run.log, store, BuildState.FAILED, said)
            raise Failure(description=said, allow_retries=False) from error


def end_build(
    build: Build,
    run_id: str,
    log: BuildLog,
    store: StoreResource,
    state: BuildState,
    error: str | None,
) -> None:
    """Close the log, and record the end of a build that did not succeed; its version is a draft again.

    A build that has ended already keeps its end; one that another run took over is left alone.
    """
    now = store.call(lambda db: db.builds.get(build.id))
    if now is None or now.run_id not in {run_id, None}:
        return
    if now.state in BUILD.terminal:
        state = now.state
    try:
        url, count = log.close(state), log.lines
    except VyvoError as unavailable:
        # The rows matter more; what the log has stays in the spool and in Redis.
        _log.warning("the log of build %s was not closed: %s", build.id, unavailable)
        url, count = None, log.lines

    async def record(db: Store) -> Build | None:
        ended = await db.builds.move(build.id, state, error=error)
        await db.builds.update(build.id, log_url=url, log_lines=count)
        version = await db.models.version_by_id(build.version_id)
        # Not when another build has it by now, nor when it was ready before this build of it.
        if version is not None and version.build_id == build.id:
            await db.models.update(
                version.id, frozenset({VersionState.BUILDING}), {"state": VersionState.DRAFT}
            )
        return ended

    count_build(store.call(record))


def count_build(ended: Build | None) -> None:
    """Measure a build that has just ended; None is one that had ended before."""
    if ended is not None and ended.started_at is not None and ended.finished_at is not None:
        seconds = (ended.finished_at - ended.started_at).total_seconds()
        backend = str(ended.backend_used or ended.backend)
        metrics.BUILD_DURATION.labels(ended.template, backend, str(ended.state)).observe(seconds)
        for phase, spent in ended.durations.items():
            metrics.BUILD_PHASES.labels(backend, phase).observe(spent)


def _cancel_asked(context: AssetExecutionContext, run: BuildRun, store: StoreResource) -> bool:
    """Whether an interrupt means that the build was canceled, and not that the worker is stopping."""
    current = context.instance.get_run_by_id(context.run.run_id)
    if current is not None and current.status is DagsterRunStatus.CANCELING:
        return True
    build = store.call(lambda db: db.builds.get(run.build.id))
    return build is None or build.state is BuildState.CANCELED


def _canceled(
    context: AssetExecutionContext, run: BuildRun, store: StoreResource, step: str
) -> None:
    run.log.line(step, "canceled")
    end_build(run.build, context.run.run_id, run.log, store, BuildState.CANCELED, None)
    current = context.instance.get_run_by_id(context.run.run_id)
    if current is not None and current.status is DagsterRunStatus.STARTED:
        # Canceled in the api and not in Dagster: the run must end as canceled, not be retried.
        context.instance.report_run_canceling(current, "The build was canceled.")


def _introduce(taken: TakenBuild, log: BuildLog) -> None:
    """Say in the log who executes the build from here on, where that has changed."""
    build = taken.build
    if not taken.begun:
        return
    if build.attempt > 1:
        log.line(
            "queue", f"the worker that had the build is gone; {build.host} goes on with it"
            f" (attempt {build.attempt})",
        )  # fmt: skip
    elif taken.waited is not None:
        log.line("queue", f"begun on {build.host}, after it had waited: {taken.waited}")
    else:
        log.line("queue", f"begun on {build.host}")


@dataclass(slots=True)
class _Watch:
    """Set `cancel` once the build is to stop; `late` says that its time is over."""

    cancel: threading.Event
    late: bool = False


@contextmanager
def _watch(
    build: Build, run_id: str, store: StoreResource, building: BuildingResource
) -> Generator[_Watch]:
    """Look whether the build's row says canceled, another run has it, or its time is over."""
    watch, done = _Watch(threading.Event()), threading.Event()
    begun = build.started_at or datetime.now(UTC)
    deadline = begun + timedelta(seconds=building.build_seconds)

    def look() -> None:
        while not done.wait(_WATCH_SECONDS):
            if datetime.now(UTC) > deadline:
                watch.late = True
                watch.cancel.set()
                return
            try:
                now = store.call(lambda db: db.builds.get(build.id))
            except VyvoError:
                continue
            if now is None or now.state is BuildState.CANCELED or now.run_id != run_id:
                watch.cancel.set()
                return

    thread = threading.Thread(target=look, name=f"cancel-{build.id}", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join(timeout=5.0)


def _sentence(step: str, error: Exception) -> str:
    """One line that names the step."""
    if isinstance(error, VyvoError):
        text = error.detail
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        text = f"the build host's disk is full ({error.filename or 'no file named'})"
    elif isinstance(error, Failure):
        text = error.description or "it failed"
    else:
        text = f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    named = text.startswith(step) or _NAMES_STEP.match(text)
    return (text if named else f"{step}: {text}")[:_ERROR_CHARS]
