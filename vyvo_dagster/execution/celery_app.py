"""The Celery app of the workers that execute Dagster runs.

    celery -A vyvo_dagster.execution.celery_app worker --pool prefork --concurrency 2

Warm: the main process imports the code location before it forks its pool, so that a run neither
starts an interpreter nor imports anything.
"""

import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from types import FrameType
from typing import Any, cast

from celery import Task
from celery.signals import (
    after_setup_logger,
    after_setup_task_logger,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutting_down,
)
from celery.worker import state
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import unpack_value
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

from vyvo_dagster.execution.broker import CELERY_CONFIG
from vyvo_dagster.execution.lease import hold_lease
from vyvo_dagster.execution.names import CODE_LOCATION_MODULE
from vyvo_dagster.execution.tracing import traced_run
from vyvo_dagster.execution.warm import warm
from vyvo_dagster.settings import S3Settings, Settings
from vyvo_dagster.streams.build_hosts import announced
from vyvo_dagster.streams.client import connect_sync
from vyvo_dagster.telemetry import logs, metrics, multiprocess, tracing

__all__ = ["app"]

log = logging.getLogger(__name__)

_settings = Settings()
app = make_app({
    "broker": _settings.redis_url,
    "backend": _settings.redis_url,
    "config_source": CELERY_CONFIG,
})  # fmt: skip


class RunTask(Task):
    """A task that executes one Dagster run, under its lease."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the run; SIGTERM interrupts it, and only it."""
        (packed,) = kwargs.values()
        run = cast("ExecuteRunArgs | ResumeRunArgs", unpack_value(packed))
        redis = connect_sync(_settings.redis_url)
        try:
            kind = "resume" if isinstance(run, ResumeRunArgs) else "execute"
            with (
                _signals_kept(),
                hold_lease(redis, run.run_id),
                metrics.WORKER_RUNS.labels(kind).time(),
                traced_run(run.run_id),
            ):
                return super().__call__(*args, **kwargs)
        finally:
            redis.close()


# dagster-celery types the options of a task as dictionaries, which they need not be.
_BASE: Any = RunTask
execute_job = create_execute_job_task(app, base=_BASE)
resume_job = create_resume_job_task(app, base=_BASE)


@contextmanager
def _signals_kept() -> Generator[None]:
    """Give Dagster an interrupt handler to restore, and put the pool's own handlers back after it.

    Dagster maps SIGTERM to whatever SIGINT has; the pool ignores SIGINT, so that without this a
    process could not be terminated any more after its first run.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signal.SIGTERM)

    for number in before:
        signal.signal(number, interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@after_setup_logger.connect
@after_setup_task_logger.connect
def _log_as_the_others(logger: logging.Logger, **_kwargs: Any) -> None:
    logs.always(service="worker")
    logs.hide(*logs.secrets_of(_settings, S3Settings()))
    for handler in logger.handlers:
        handler.setFormatter(logs.formatter(_settings.log_format))


@worker_init.connect
def _preload(**_kwargs: Any) -> None:
    """Import the code location and what its runs use, in the process that the pool is forked from."""
    # By name, as Dagster itself loads it: execution stands below the code location.
    importlib.import_module(CODE_LOCATION_MODULE)
    if _settings.worker_port:
        folder = _settings.data_dir / "metrics" / f"worker-{_settings.worker_port}"
        try:
            multiprocess.share(folder)
            multiprocess.serve(folder, _settings.worker_port, _settings.metrics_host)
        except OSError as error:
            # Runs matter more than what is told of them.
            log.error("metrics are not served: %s", error)


@worker_process_init.connect
def _warm(**_kwargs: Any) -> None:
    """Do once what would else be paid by the first run of this process."""
    tracing.start("worker")
    warm(importlib.import_module(CODE_LOCATION_MODULE).defs)


@worker_process_shutdown.connect
def _send_spans(**_kwargs: Any) -> None:
    tracing.stop()


_host = ExitStack()


@worker_ready.connect
def _announce(**_kwargs: Any) -> None:
    """Say that this host executes builds, until the worker stops."""
    redis = _host.enter_context(closing(connect_sync(_settings.redis_url)))
    _host.enter_context(announced(redis, _settings.build_host or socket.gethostname()))


@worker_shutting_down.connect
def _interrupt_runs(**_kwargs: Any) -> None:
    """Interrupt the runs under way: a build may take an hour, and its retry goes on with it."""
    _host.close()
    for request in list(state.active_requests):
        pid = getattr(request, "worker_pid", None)
        if pid:
            os.kill(pid, signal.SIGTERM)
