"""The prediction that is running: its id and its progress, through Cog's scope where there is one."""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import contextmanager
from typing import Any, Generator, Optional

__all__ = ["prediction_id", "progress", "span"]

PROGRESS_METRIC = "progress"
SPAN_METRIC = "vyvo_span"
_NAME_CHARS = 128
# coglet keeps 1,024 events of a prediction for clients that come back; progress takes 200 of them.
_SMALLEST_STEP = 0.005

_last = threading.local()


def progress(fraction: float) -> None:
    """Tell whoever follows the job how far it is.

    The figure goes out as the Cog metric `progress`. Steps smaller than half a percent are left
    out. Outside a prediction this does nothing.

    Args:
        fraction: 0 (nothing done) to 1 (done); what lies outside is cut off.

    Raises:
        ValueError: the fraction is not a finite number.
    """
    if not math.isfinite(fraction):
        raise ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")
    fraction = min(1.0, max(0.0, float(fraction)))
    before: float = getattr(_last, "fraction", 1.0)
    # A fraction below the last one is the next prediction's.
    if before <= fraction < min(1.0, before + _SMALLEST_STEP):
        return
    _last.fraction = fraction
    scope = _scope()
    if scope is not None:
        scope.record_metric(PROGRESS_METRIC, fraction)


@contextmanager
def span(name: str) -> Generator[None, None, None]:
    """Show the block as a span in the job's trace, by this name.

    Where the job is not traced this does nothing. The span goes to the node agent as a Cog metric, so
    that a runner needs neither OpenTelemetry nor a way to a collector.
    """
    scope = _scope()
    trace = "" if scope is None else scope.context.get("traceparent", "")
    # The last two digits are the flags; the lowest bit says that the trace is recorded.
    if scope is None or len(trace) != 55 or trace[-1] not in "13579bdf":
        yield
        return
    begin, failed = time.time(), True
    try:
        yield
        failed = False
    finally:
        told = {
            "name": str(name)[:_NAME_CHARS],
            "begin": begin,
            "end": time.time(),
            "failed": failed,
        }
        scope.record_metric(SPAN_METRIC, json.dumps(told))


def prediction_id() -> Optional[str]:
    """The id of the running prediction, or None outside one or where the caller sent none.

    Cog tells a predictor nothing of its id, so the node agent sends it in the request's `context`.
    """
    scope = _scope()
    value = None if scope is None else scope.context.get("prediction_id")
    return value or None


def _scope() -> Optional[Any]:
    try:
        from cog import current_scope
    except ImportError:
        return None
    return current_scope()
