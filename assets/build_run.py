"""What every step of a build does around its work: the fence, the log, cancel, and the end.

However a step ends, the build's row, the version's row and the log agree on it:

- it fails: build failed with a sentence that names the step, version a draft again, log closed;
- it is canceled, by the api or in Dagster: build canceled, version a draft again, log closed;
- its worker goes away: nothing is changed, and the retry of the run goes on with the same build.
"""

import logging
import re
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from dagster import (
    AssetExecutionContext,
    DagsterExecutionInterruptedError,
    DagsterRunStatus,
    Failure,
)

from assets.build_lookup import take_build
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
    build, version = take_build(context, store)
    secrets = [objects.secret_key, *(v for k, v in build.env.items() if _SECRET_NAME.search(k))]
    spool = building.scratch(str(build.id)) / "log.jsonl"
    trace = op_trace(
        context.run.run_id, context.op_execution_context.get_step_execution_context().step.key
    )
    with ExitStack() as stack:
        stack.enter_context(logs.bound(build_id=str(build.id)))
        stack.enter_context(tracing.within(trace))
        redis = stack.enter_context(streams.connection())
        log = BuildLog(
            str(build.id), spool, redis, keys.build_log(build.id), objects.store(), secrets=secrets
        )
        stack.callback(log.detach)
        cancel = stack.enter_context(_watch(build, context.run.run_id, store))
        run = BuildRun(build, version, log, cancel)
        try:
            yield run
        except BuildCanceled:
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
        # Not when another build has it by now.
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


@contextmanager
def _watch(build: Build, run_id: str, store: StoreResource) -> Generator[threading.Event]:
    """An event that is set once the build's row says canceled, or that another run has it."""
    cancel, done = threading.Event(), threading.Event()

    def look() -> None:
        while not done.wait(_WATCH_SECONDS):
            try:
                now = store.call(lambda db: db.builds.get(build.id))
            except VyvoError:
                continue
            if now is None or now.state is BuildState.CANCELED or now.run_id != run_id:
                cancel.set()
                return

    thread = threading.Thread(target=look, name=f"cancel-{build.id}", daemon=True)
    thread.start()
    try:
        yield cancel
    finally:
        done.set()
        thread.join(timeout=5.0)


def _sentence(step: str, error: Exception) -> str:
    """One line that names the step."""
    if isinstance(error, VyvoError):
        text = error.detail
    elif isinstance(error, Failure):
        text = error.description or "it failed"
    else:
        text = f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return (text if text.startswith(step) else f"{step}: {text}")[:_ERROR_CHARS]
