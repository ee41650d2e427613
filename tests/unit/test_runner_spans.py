"""Spans of times past, and those that runners tell of: whose they are, and what is left out."""

import json
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from vyvo_dagster.agent.spans import record_runner_span
from vyvo_dagster.telemetry import tracing

PARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "_tracing", tracing._Tracing("agent", SimpleSpanProcessor(exporter)))  # fmt: skip
    yield exporter
    tracing.stop()


def runner(**values: object) -> str:
    now = time.time()
    return json.dumps({"name": "denoise", "begin": now - 2, "end": now - 1, "failed": False, **values})  # fmt: skip


def test_a_runners_span_is_below_the_current_one_and_is_the_runners(
    told: InMemorySpanExporter,
) -> None:
    with tracing.span("predict", PARENT):
        record_runner_span(runner())
        record_runner_span(runner(name="again", failed=True))
    denoise, again, predict = told.get_finished_spans()
    assert predict.context.trace_id == int("a" * 32, 16)
    for each in (denoise, again):
        assert each.parent is not None
        assert each.parent.span_id == predict.context.span_id
        assert each.resource.attributes["service.name"] == "vyvo-runner"
    assert predict.resource.attributes["service.name"] == "vyvo-agent"
    assert (denoise.status.is_ok, again.status.is_ok) == (True, False)
    assert denoise.end_time - denoise.start_time == pytest.approx(1e9, rel=1e-3)


# The ids of tests must be the same in every process: no times of now are among them.
STRANGE: dict[str, str | dict[str, object]] = {
    "nothing": "", "no JSON": "{", "a list": "[]", "null": "null", "a number": "3",
    "infinity": '{"name": "x", "begin": NaN, "end": Infinity}',
    "no name": {"name": ""}, "a long name": {"name": "x" * 129}, "a word": {"begin": "yesterday"},
    "negative": {"begin": -1.0}, "long ago": {"begin": 1.0}, "no end": {"end": None},
    "huge": {"begin": 1e308, "end": 1e308}, "in the future": {"begin": 4e9, "end": 4e9 + 1},
    "backwards": {"begin": 2e9, "end": 1e9},
}  # fmt: skip


@pytest.mark.parametrize("given", STRANGE.values(), ids=STRANGE)
def test_what_makes_no_sense_is_left_out(
    told: InMemorySpanExporter, given: str | dict[str, object]
) -> None:
    with tracing.span("predict", PARENT):
        record_runner_span(given if isinstance(given, str) else runner(**given))
    assert [s.name for s in told.get_finished_spans()] == ["predict"]


def test_what_the_client_does_not_want_recorded_is_not(told: InMemorySpanExporter) -> None:
    with tracing.span("run attempt", PARENT[:-2] + "00"):
        assert tracing.traceparent() is not None
        assert str(tracing.traceparent()).endswith("-00")
        record_runner_span(runner())
    assert told.get_finished_spans() == ()


def test_a_span_with_derived_ids_is_found_by_who_derives_them(told: InMemorySpanExporter) -> None:
    step = tracing.derived(PARENT, "step", 7, 1)
    tracing.record("job", step, 1.0, 2.0)
    tracing.record("step", PARENT, 0.5, 2.5, itself=step, error="it failed")
    job, made = told.get_finished_spans()
    assert job.parent is not None
    assert job.parent.span_id == made.context.span_id
    assert made.parent is not None
    assert made.parent.span_id == int("b" * 16, 16)
    assert not made.status.is_ok


def test_an_error_that_leaves_a_span_marks_it(told: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="broken"), tracing.span("work"):
        raise ValueError("broken")
    (work,) = told.get_finished_spans()
    assert not work.status.is_ok
