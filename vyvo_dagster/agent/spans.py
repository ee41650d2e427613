"""Spans that runners tell of: what `vyvo_runner.span` sends, checked, in the trace of its attempt."""

import time
from typing import Annotated, Final

from pydantic import BaseModel, Field, ValidationError

from vyvo_dagster.agent.texts import clean
from vyvo_dagster.telemetry import tracing

__all__ = ["record_runner_span"]

# A prediction may take hours; one that says days has a wrong clock.
_LONGEST_SECONDS: Final = 86400.0
_SKEW_SECONDS: Final = 5.0


class _Told(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    begin: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    end: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    failed: bool = False


def record_runner_span(text: str) -> None:
    """Record a span below the current one, as the runner's; one that makes no sense is left out."""
    parent = tracing.traceparent()
    if parent is None:
        return
    try:
        told = _Told.model_validate_json(text)
    except ValidationError:
        return
    now = time.time()
    if not now - _LONGEST_SECONDS < told.begin <= told.end < now + _SKEW_SECONDS:
        return
    tracing.record(
        str(clean(told.name)), parent, told.begin, told.end,
        error="the runner says that it failed" if told.failed else None, service="runner",
    )  # fmt: skip
