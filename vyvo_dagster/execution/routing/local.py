"""Steps of the machine that the run is on: in the run's process, or in one of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from dagster import DagsterEvent
from dagster._core.events import EngineEventData
from dagster._core.execution.api import create_execution_plan, execute_plan_iterator
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
)
from dagster._utils.hosted_user_process import recon_job_from_origin
from typing_extensions import override

from vyvo_dagster.agent.runners import die_with_parent

__all__ = ["InProcessStepHandler", "ProcessStepHandler", "step_key"]

_LOOK_SECONDS: Final = 0.05


def step_key(context: StepHandlerContext) -> str:
    """The one step that a handler is called for."""
    keys = context.execute_step_args.step_keys_to_execute or []
    assert len(keys) == 1, keys
    return keys[0]


class InProcessStepHandler(StepHandler):
    """Runs a step when told to, in this process; the executor's loop waits meanwhile.

    A step that is launched is put aside until `run_next`, so that all others of the same moment are
    under way first.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, StepHandlerContext] = {}
        self._ran: set[str] = set()

    @property
    @override
    def name(self) -> str:
        return "InProcessStepHandler"

    @override
    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        self._waiting[step_key(step_handler_context)] = step_handler_context
        yield from ()

    def run_next(self) -> None:
        """Run one step of those put aside, if there is one; its events go to the event log."""
        if not self._waiting:
            return
        key = next(iter(self._waiting))
        context = self._waiting.pop(key)
        self._ran.add(key)
        run, args = context.dagster_run, context.execute_step_args
        DagsterEvent.step_worker_starting(
            context.get_step_context(key),
            message=f'Executing step "{key}" in the process of the run.',
            metadata={"pid": str(os.getpid())},
        )
        job = recon_job_from_origin(args.job_origin).get_subset(
            op_selection=run.resolved_op_selection,
            asset_selection=run.asset_selection,
            asset_check_selection=run.asset_check_selection,
        )
        plan = create_execution_plan(
            job,
            run_config=run.run_config,
            step_keys_to_execute=[key],
            known_state=args.known_state,
        )
        events = execute_plan_iterator(
            plan,
            job,
            run,
            context.instance,
            retry_mode=args.retry_mode,
            run_config=run.run_config,
        )
        for _ in events:  # Each is in the event log by then, where the executor reads it.
            pass

    @override
    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        # A step runs between two checks, or waits; its end is in the event log before this returns.
        key = step_key(step_handler_context)
        if key in self._waiting or key in self._ran:
            return CheckStepHealthResult.healthy()
        return CheckStepHealthResult.unhealthy("it was in the process of the worker that is gone")

    @override
    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        self._waiting.pop(step_key(step_handler_context), None)
        yield from ()


class ProcessStepHandler(StepHandler):
    """Runs each step in a process of its own, beside one another; it dies with this one."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    @override
    def name(self) -> str:
        return "ProcessStepHandler"

    @override
    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        key, args = step_key(step_handler_context), step_handler_context.execute_step_args
        command = args.get_command_args(skip_serialized_namedtuple=True)
        (variable,) = args.get_command_env()
        wrapper = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
        module = [sys.executable, "-m", "dagster", *command[command.index("api") :]]
        env = {**os.environ, variable["name"]: variable["value"]}
        process = subprocess.Popen([*wrapper, *module], env=env, start_new_session=True)
        self._running[key] = process
        yield DagsterEvent.step_worker_starting(
            step_handler_context.get_step_context(key),
            message=f'Executing step "{key}" in a process of its own.',
            metadata={"pid": str(process.pid)},
        )

    @override
    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        process = self._running.get(step_key(step_handler_context))
        if process is None:
            return CheckStepHealthResult.unhealthy("its process is not a child of this run's")
        if (status := _status(process)) in {None, 0}:
            return CheckStepHealthResult.healthy()
        return CheckStepHealthResult.unhealthy(f"its process ended with {status}")

    @override
    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        key = step_key(step_handler_context)
        if (process := self._running.get(key)) is None:
            return
        yield DagsterEvent.engine_event(
            step_handler_context.get_step_context(key),
            f"Stopping process {process.pid} of the step.",
            EngineEventData(),
        )
        if _status(process) is None:
            process.terminate()

    def close(self, grace_seconds: float, *, stop: bool) -> None:
        """Leave no process behind, nor what the steps started in their process groups.

        One that still runs may end by itself within the grace; with `stop` it is told to. What is
        left then is killed.
        """
        deadline = time.monotonic() + grace_seconds
        processes, self._running = list(self._running.values()), {}
        for process in processes if stop else ():
            if _status(process) is None:
                process.terminate()
        for process in processes:
            while _status(process) is None and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
            # Not reaped until then, so that the group's number is nobody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _status(process: "subprocess.Popen[bytes]") -> int | None:
    """How a process ended, None where it has not; leaves it to be reaped."""
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
