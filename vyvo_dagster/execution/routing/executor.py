"""The executor: steps that a resolver routes go to Docker engines, the others stay with the run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from dagster import DagsterEvent, Executor, ExecutorDefinition, Field, InitExecutorContext, executor
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.executor.step_delegating import StepDelegatingExecutor
from dagster._core.instance import DagsterInstance
from typing_extensions import override

from vyvo_dagster.execution.routing.hosts import HostResolver

__all__ = ["PROCESS_TAG", "RoutingExecutor", "routing_executor"]

PROCESS_TAG: Final = "vyvo/process"
"""`own` on a step that is not routed: it has a process of its own, beside the others."""

_OWN: Final = "own"
_GRACE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.2
_HEALTH_SECONDS: Final = 2
_ENTRY_POINT: Final = ["python3", "-m", "dagster"]


class RoutingExecutor(Executor):
    """Routes each step of a run by its tags.

    A run none of whose steps leaves its process is executed as by the in-process executor: it pays
    nothing for the routing.

    Args:
        resolver: says which steps are routed, and where to.
        config: of `routing_executor`, as Dagster validated it.
    """

    def __init__(self, resolver: HostResolver, config: Mapping[str, Any]) -> None:
        self._resolver = resolver
        self._config = config
        self._retries = cast("RetryMode", RetryMode.from_config(config["retries"]))

    @property
    @override
    def retries(self) -> RetryMode:
        return self._retries

    @override
    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        steps = (execution_plan.get_step_by_key(k) for k in execution_plan.step_keys_to_execute)
        alone = all(self._route(step.tags or {}) == "process" for step in steps)
        # A run that is resumed has steps that were done; only the other executor reads of them.
        if alone and not plan_context.resume_from_failure:
            return InProcessExecutor(self._retries).execute(plan_context, execution_plan)
        return self._delegated(plan_context, execution_plan)

    def _route(self, tags: Mapping[str, str]) -> str:
        if self._resolver.routes(tags):
            return "host"
        return "own_process" if tags.get(PROCESS_TAG) == _OWN else "process"

    def _delegated(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        # Docker's libraries cost a second of a process that may never need them.
        from dagster_docker.container_context import DockerContainerContext

        from vyvo_dagster.execution.routing.containers import HostStepHandler
        from vyvo_dagster.execution.routing.engines import Engines
        from vyvo_dagster.execution.routing.local import InProcessStepHandler, ProcessStepHandler
        from vyvo_dagster.execution.routing.router import RoutingStepHandler

        config = self._config
        settings = DockerContainerContext(
            registry=config.get("registry"),
            env_vars=config.get("env_vars", []),
            networks=config.get("networks", []),
            container_kwargs=config.get("container_kwargs", {}),
        )
        here, beside = InProcessStepHandler(), ProcessStepHandler()
        hosts = HostStepHandler(
            self._resolver, Engines(), config.get("image"), settings, config["entry_point"]
        )
        router = RoutingStepHandler(
            {"host": hosts, "process": here, "own_process": beside}, self._route
        )

        class Loop(StepDelegatingExecutor):
            """Runs one step of this process at a turn, once all others are under way."""

            @override
            def _pop_events(
                self, instance: DagsterInstance, run_id: str, seen_storage_ids: set[int]
            ) -> Sequence[DagsterEvent]:
                here.run_next()
                return super()._pop_events(instance, run_id, seen_storage_ids)

        loop = Loop(
            router,
            retries=self._retries,
            sleep_seconds=_POLL_SECONDS,
            check_step_health_interval_seconds=_HEALTH_SECONDS,
            max_concurrent=config.get("max_concurrent"),
            tag_concurrency_limits=config.get("tag_concurrency_limits"),
        )
        finished = False
        try:
            yield from loop.execute(plan_context, execution_plan)
            finished = True
        finally:
            # However the run ends here: by itself, by an interrupt in a step of this process, which
            # the loop above does not see, or by an error. Then no container and no process is left.
            beside.close(_GRACE_SECONDS, stop=not finished)
            resumes = not finished and plan_context.instance.run_will_resume(plan_context.run_id)
            if not resumes:
                hosts.close(plan_context.run_id, _GRACE_SECONDS, stop=not finished)
            self._resolver.close()


def routing_executor(
    make_resolver: Callable[[InitExecutorContext], HostResolver],
    defaults: Mapping[str, Any] | None = None,
) -> ExecutorDefinition:
    """An executor definition.

    Args:
        make_resolver: called once a run, in the run's process.
        defaults: of its configuration, for the fields that a run leaves out.
    """

    @executor(
        name="hosts",
        config_schema={
            "image": Field(
                str, is_required=False, description="Where the code location names none."
            ),
            "networks": Field([str], is_required=False, description="Of every container."),
            "env_vars": Field(
                [str], is_required=False, description="NAME=VALUE, or NAME for the run's own value."
            ),
            "container_kwargs": Field(
                dict, is_required=False, description="More arguments of containers.create."
            ),
            "registry": Field(
                {"url": str, "username": str, "password": str},
                is_required=False,
                description="Of the image, where it wants a login.",
            ),
            "entry_point": Field(
                [str], default_value=_ENTRY_POINT, description="Dagster's command in the image."
            ),
            "max_concurrent": Field(
                int, is_required=False, description="Steps of a run at a time."
            ),
            "tag_concurrency_limits": get_tag_concurrency_limits_config(),
            "retries": get_retries_config(),
        },
    )
    def hosts(context: InitExecutorContext) -> Executor:
        given = {k: v for k, v in context.executor_config.items() if v is not None}
        return RoutingExecutor(make_resolver(context), {**(defaults or {}), **given})

    return hosts
