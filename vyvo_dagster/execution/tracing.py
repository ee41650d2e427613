"""The spans of a Dagster run and of its ops, in the trace that the run's tag names."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

from dagster import DagsterInstance, DagsterRunStatus
from dagster_shared.error import DagsterError
from sqlalchemy.exc import SQLAlchemyError

from vyvo_dagster.execution.names import TRACE_TAG
from vyvo_dagster.telemetry import tracing

__all__ = ["op_trace", "traced_run"]

log = logging.getLogger(__name__)


def op_trace(run_id: str, step_key: str) -> str | None:
    """What a run's op is known by in the current trace, for what happens within it."""
    return tracing.derived(tracing.traceparent(), "op", run_id, step_key)


@contextmanager
def traced_run(run_id: str) -> Generator[None]:
    """A span around the execution of a run; its ops are told of, from its events, as it ends."""
    if not tracing.on():
        yield
        return
    with DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        parent = None if run is None else tracing.valid(run.tags.get(TRACE_TAG))
        name = "unknown" if run is None else run.job_name
        attributes = {"dagster.run_id": run_id, "dagster.job": name}
        with tracing.span(f"run {name}", parent, kind="consumer", attributes=attributes) as span:
            try:
                yield
            finally:
                try:
                    _tell_ops(instance, run_id)
                    after = instance.get_run_by_id(run_id)
                    if after is not None and after.status is not DagsterRunStatus.SUCCESS:
                        tracing.fail(span, after.status.value)
                except (DagsterError, SQLAlchemyError, OSError) as error:
                    log.warning("the ops of run %s are in no trace: %s", run_id, error)


def _tell_ops(instance: DagsterInstance, run_id: str) -> None:
    for step in instance.get_run_step_stats(run_id):
        if step.start_time is None or step.end_time is None:
            continue
        failed = step.status is not None and step.status.value == "FAILURE"
        tracing.record(
            f"op {step.step_key}", tracing.traceparent(), step.start_time, step.end_time,
            itself=op_trace(run_id, step.step_key), error="the op failed" if failed else None,
            attributes={"dagster.run_id": run_id, "dagster.step_key": step.step_key},
        )  # fmt: skip
