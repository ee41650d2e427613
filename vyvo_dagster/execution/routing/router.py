"""Several step handlers in one run, chosen step by step."""

from collections.abc import Callable, Iterator, Mapping

from dagster import DagsterEvent
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
)
from typing_extensions import override

__all__ = ["RoutingStepHandler"]


class RoutingStepHandler(StepHandler):
    """Hands each step to the handler that `route` names for its tags.

    The choice depends on the tags alone, so that every later call for the step, of this process or
    of one that resumes the run, goes to the same handler.

    Args:
        handlers: by name.
        route: from the tags of a step to one of those names.
    """

    def __init__(
        self,
        handlers: Mapping[str, StepHandler],
        route: Callable[[Mapping[str, str]], str],
    ) -> None:
        super().__init__()
        self._handlers = dict(handlers)
        self._route = route

    @property
    @override
    def name(self) -> str:
        return f"RoutingStepHandler({', '.join(self._handlers)})"

    @override
    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        return self._of(step_handler_context).launch_step(step_handler_context)

    @override
    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        return self._of(step_handler_context).check_step_health(step_handler_context)

    @override
    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        return self._of(step_handler_context).terminate_step(step_handler_context)

    def _of(self, context: StepHandlerContext) -> StepHandler:
        ((_, tags),) = context.step_tags.items()
        return self._handlers[self._route(tags)]
