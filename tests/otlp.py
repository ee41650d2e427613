"""An OTLP receiver for tests, and traces as trees.

`oteltap` receives; since what it hands over has lost its resource, it sends on what it got to a
reader here, which knows whose each span is.
"""

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings


@dataclass(frozen=True)
class Span:
    """A span as it was received. Times in seconds since the epoch."""

    trace: str
    id: str
    parent: str
    name: str
    service: str
    attributes: dict[str, Any]
    begin: float
    end: float
    failed: bool


@dataclass
class Received:
    """Everything that has come so far."""

    endpoint: str
    spans: list[Span] = field(default_factory=list[Span])

    def trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace, each once: a span may be told of again after a crash."""
        found = {s.id: s for s in list(self.spans) if s.trace == trace_id}
        return sorted(found.values(), key=lambda s: s.begin)


@contextmanager
def receiver(port: int) -> Generator[Received]:
    """Receive on a loopback port while the block runs."""
    received = Received(f"http://127.0.0.1:{port}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _reader(received.spans.append))
    url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    settings = OtelTapHttpProtobufReceiverSettings(http_port=port, reemit_traces_to_url=url)
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def tap() -> None:
        async with OtelTapHttpProtobufReceiver(settings):
            ready.set()
            await stop.wait()

    threads = [
        threading.Thread(target=server.serve_forever, daemon=True),
        threading.Thread(target=loop.run_until_complete, args=(tap(),), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        assert ready.wait(30), "the receiver did not start"
        yield received
    finally:
        loop.call_soon_threadsafe(stop.set)
        server.shutdown()
        for thread in threads:
            thread.join(30)
        server.server_close()
        loop.close()


def tree(spans: Sequence[Span]) -> str:
    """A trace as text: a line a span, below its parent, in the order of time."""
    ids = {s.id for s in spans}

    def lines(parent: str | None, depth: int) -> list[str]:
        below = [s for s in spans if (s.parent if s.parent in ids else None) == parent]
        found: list[str] = []
        for s in below:
            found.append(f"{'  ' * depth}{s.name} [{s.service}] {1000 * (s.end - s.begin):.0f} ms")
            found += lines(s.id, depth + 1)
        return found

    return "\n".join(lines(None, 0))


def path(spans: Sequence[Span], leaf: Span) -> list[str]:
    """Names and services from the root down to a span."""
    by_id = {s.id: s for s in spans}
    names: list[str] = []
    at: Span | None = leaf
    while at is not None:
        names.append(f"{at.name} [{at.service}]")
        at = by_id.get(at.parent)
    return names[::-1]


def _reader(take: Callable[[Span], None]) -> type[BaseHTTPRequestHandler]:
    class Reader(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                said = {a.key: a.value.string_value for a in group.resource.attributes}
                for scope in group.scope_spans:
                    for raw in scope.spans:
                        take(_span(raw, said.get("service.name", "")))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    return Reader


def _span(raw: Any, service: str) -> Span:
    attributes = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in raw.attributes}
    return Span(
        raw.trace_id.hex(), raw.span_id.hex(), raw.parent_span_id.hex(), raw.name, service, attributes,
        raw.start_time_unix_nano / 1e9, raw.end_time_unix_nano / 1e9, raw.status.code == 2,
    )  # fmt: skip
