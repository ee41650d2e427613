"""A span for each request, in the trace that its `traceparent` names or in one of its own."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vyvo_dagster.telemetry import tracing

__all__ = ["Tracing"]

# Probes, and what agents say all the time: of reports, each job's own trace tells.
_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_AGENTS: Final = ("/heartbeat", "/reports", "/progress", "/complete")


class Tracing:
    """ASGI middleware, the outermost; only there where tracing is on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on within its span."""
        if scope["type"] != "http" or scope["path"] in _QUIET or scope["path"].endswith(_AGENTS):
            await self._app(scope, receive, send)
            return
        method = str(scope["method"])
        parent = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1") or None
        attributes = {"http.request.method": method}
        with tracing.span(method, parent, kind="server", attributes=attributes) as span:

            async def named(message: Message) -> None:
                if message["type"] == "http.response.start" and span is not None:
                    # The route's pattern, as in the metrics: a path has ids in it.
                    route = getattr(scope.get("route"), "path", "unmatched")
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        tracing.fail(span, f"HTTP {message['status']}")
                await send(message)

            await self._app(scope, receive, named)
