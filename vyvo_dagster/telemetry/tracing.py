"""Traces by OpenTelemetry: spans of this process, sent by OTLP to a collector.

Off, which it is unless the standard variables name an endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`), nothing of OpenTelemetry is imported, and what is asked here is
answered by one comparison. Sampling, batches, resource attributes and headers are set by the
standard variables too. A collector that is away costs spans, and nothing else.

Between processes a trace goes as the text of a `traceparent` (W3C Trace Context): in rows, stream
entries and headers. Some spans are told of after others were made below them, perhaps by another
process: their ids are derived from what they are of, so that whoever tells of them names the same.
"""

import hashlib
import logging
import os
import re
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import datetime
from threading import Thread
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span, SpanKind, Tracer

__all__ = [
    "Attributes",
    "Kind",
    "derived",
    "fail",
    "ids",
    "on",
    "record",
    "span",
    "start",
    "stop",
    "traceparent",
    "valid",
    "within",
]

log = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float | bool]
Kind = Literal["internal", "server", "client", "producer", "consumer"]

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP: Final = "http/protobuf"
_NAMESPACE: Final = "vyvo"
_STOP_SECONDS: Final = 2.0

_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

# While off: a context manager that many may be in at a time.
_NO_SPAN: Final = nullcontext(None)

_span_id: ContextVar[int | None] = ContextVar("vyvo_span_id", default=None)


class _Tracing:
    """What is there once tracing is on: a provider for each service that spans are told of."""

    def __init__(self, service: str, processor: "SpanProcessor") -> None:
        self.service = service
        self._processor = processor
        self._providers: dict[str, TracerProvider] = {}

    def tracer(self, service: str | None) -> "Tracer":
        name = service or self.service
        provider = self._providers.get(name)
        if provider is None:
            provider = self._providers[name] = self._provider(name)
        return provider.get_tracer("vyvo_dagster")

    def _provider(self, service: str) -> "TracerProvider":
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Ids(RandomIdGenerator):
            def generate_span_id(self) -> int:
                return _span_id.get() or super().generate_span_id()

        given = {"service.name": f"vyvo-{service}", "service.namespace": _NAMESPACE}
        # What the standard variables say goes before it, but for the name of another's spans.
        resource = Resource.create(given)
        if os.environ.get("OTEL_SERVICE_NAME") and service != self.service:
            resource = resource.merge(Resource(given))
        provider = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        return provider

    def shutdown(self) -> None:
        # By itself it would wait half a minute for a collector that is away.
        last = Thread(target=self._processor.shutdown, name="traces", daemon=True)
        last.start()
        last.join(_STOP_SECONDS)


_tracing: _Tracing | None = None


def start(service: str) -> bool:
    """Turn tracing on where the environment asks for it; whether it is on.

    Args:
        service: what this process is: `api` is told of as `vyvo-api`, unless OTEL_SERVICE_NAME says
            otherwise.
    """
    global _tracing  # noqa: PLW0603 - one a process, as OpenTelemetry's own
    env = os.environ
    asked = any(env.get(name) for name in _ENDPOINTS) or env.get("OTEL_TRACES_EXPORTER") == "otlp"
    off = env.get("OTEL_SDK_DISABLED", "").lower() == "true" or (
        env.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if not asked or off or _tracing is not None:
        return _tracing is not None
    protocol = next((env[name] for name in _PROTOCOLS if env.get(name)), _HTTP)
    if protocol != _HTTP:
        log.warning("traces are sent by %s only, not by %s: they are off", _HTTP, protocol)
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("traces are asked for; install vyvo-dagster[tracing] for them")
        return False
    _tracing = _Tracing(service, BatchSpanProcessor(OTLPSpanExporter()))
    return True


def stop() -> None:
    """Send what is left, for two seconds at most, and turn tracing off."""
    global _tracing
    tracing, _tracing = _tracing, None
    if tracing is not None:
        tracing.shutdown()


def on() -> bool:
    """Whether spans are made."""
    return _tracing is not None


def traceparent() -> str | None:
    """The current span, for whoever goes on with its trace; None without one."""
    if _tracing is None:
        return None
    from opentelemetry.trace import get_current_span

    return _text(get_current_span())


def valid(text: str | None) -> str | None:
    """`text` if it is a traceparent."""
    return text if text is not None and _TRACEPARENT.fullmatch(text) else None


def ids() -> tuple[str, str] | None:
    """Trace and span of the current span, in hexadecimal; None without one."""
    text = traceparent()
    return None if text is None else (text[3:35], text[36:52])


def derived(parent: str | None, *of: object) -> str | None:
    """The span that is of these names, in the trace of `parent`: always the same one."""
    if parent is None:
        return None
    span_id = hashlib.sha256("/".join(str(name) for name in of).encode()).hexdigest()[:16]
    return f"{parent[:36]}{span_id}{parent[52:]}"


@contextmanager
def within(parent: str | None) -> Generator[None]:
    """Go on with a span that is told of elsewhere, for as long as the block runs."""
    context = None if _tracing is None else _context(parent)
    if context is None:
        yield
        return
    from opentelemetry.context import attach, detach

    token = attach(context)
    try:
        yield
    finally:
        detach(token)


def span(
    name: str,
    parent: str | None = None,
    *,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    itself: str | None = None,
) -> AbstractContextManager["Span | None"]:
    """A span around the block; an exception that leaves it marks it as failed. None while off.

    Args:
        parent: a traceparent; the current span where None, and a root without one.
        itself: the id to have, from `derived`.
    """
    if _tracing is None:
        return _NO_SPAN
    return _made(_tracing, name, parent, kind, attributes, itself)


@contextmanager
def _made(
    tracing: _Tracing,
    name: str,
    parent: str | None,
    kind: Kind,
    attributes: Attributes | None,
    itself: str | None,
) -> "Generator[Span | None]":
    from opentelemetry.trace import use_span

    token = _span_id.set(None if itself is None else int(itself[36:52], 16))
    try:
        made = tracing.tracer(None).start_span(
            name, _context(parent), _kind(kind), dict(attributes or {})
        )
    finally:
        _span_id.reset(token)
    with use_span(made, end_on_exit=True):
        yield made


def record(
    name: str,
    parent: str | None,
    begin: datetime | float,
    end: datetime | float,
    *,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    itself: str | None = None,
    error: str | None = None,
    service: str | None = None,
) -> str | None:
    """Tell of what is over; its traceparent, or None while off.

    Args:
        parent: a traceparent; None makes a root.
        begin, end: when it was; numbers are seconds since the epoch.
        error: why it failed.
        service: whose it was, if another process's.
    """
    if _tracing is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import Status, StatusCode

    context = Context() if parent is None else _context(parent)
    token = _span_id.set(None if itself is None else int(itself[36:52], 16))
    try:
        made = _tracing.tracer(service).start_span(
            name, context, _kind(kind), dict(attributes or {}), start_time=_nanoseconds(begin)
        )
    finally:
        _span_id.reset(token)
    if error is not None:
        made.set_status(Status(StatusCode.ERROR, error[:500]))
    made.end(_nanoseconds(end))
    return _text(made)


def fail(made: "Span | None", why: str) -> None:
    """Mark a span as failed."""
    if made is not None:
        from opentelemetry.trace import Status, StatusCode

        made.set_status(Status(StatusCode.ERROR, why[:500]))


def _context(parent: str | None) -> "Context | None":
    if parent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _kind(kind: Kind) -> "SpanKind":
    from opentelemetry.trace import SpanKind

    return SpanKind[kind.upper()]


def _text(made: "Span") -> str | None:
    context = made.get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"


def _nanoseconds(when: datetime | float) -> int:
    return int((when.timestamp() if isinstance(when, datetime) else when) * 1e9)
