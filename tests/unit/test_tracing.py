"""Tracing while it is off, and ids that are derived."""

import subprocess
import sys

import pytest

from vyvo_dagster.telemetry import tracing

PARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def test_off_nothing_is_made() -> None:
    assert not tracing.on()
    with tracing.span("work", PARENT) as span, tracing.within(PARENT):
        assert span is None
        assert tracing.traceparent() is None
        assert tracing.ids() is None
    assert tracing.record("past", PARENT, 1.0, 2.0) is None


def test_off_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys; from vyvo_dagster.telemetry import tracing, logs; tracing.start('api');\n"
        "with tracing.span('x'): logs.configure('json')\n"
        "sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={}, timeout=60, check=False)
    assert done.returncode == 0


def test_a_derived_span_is_the_same_each_time_and_in_the_same_trace() -> None:
    one, again, other = (
        tracing.derived(PARENT, *of) for of in (("step", 1), ("step", 1), ("step", 2))
    )
    assert one == again != other
    assert one is not None
    assert tracing.valid(one) == one
    assert (one[:36], one[-2:]) == (PARENT[:36], "01")
    assert tracing.derived(None, "step", 1) is None


@pytest.mark.parametrize("text", [
    None, "", "x", PARENT + "0", "00-" + "0" * 32 + "-" + "b" * 16 + "-01",
    "00-" + "a" * 32 + "-" + "0" * 16 + "-01", "01-" + "a" * 32 + "-" + "b" * 16 + "-01",
])  # fmt: skip
def test_what_is_no_traceparent_is_none(text: str | None) -> None:
    assert tracing.valid(text) is None
