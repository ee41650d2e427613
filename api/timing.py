"""How long requests take until their answer begins, by route."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vyvo_dagster.telemetry import metrics

__all__ = ["Timing"]


class Timing:
    """ASGI middleware: observes vyvo_http_request_seconds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, timed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's pattern, never the path: ids would make a series each.
                route = getattr(scope.get("route"), "path", "unmatched")
                labels = (scope["method"], route, str(message["status"]))
                metrics.HTTP_REQUESTS.labels(*labels).observe(time.perf_counter() - started)
            await send(message)

        await self._app(scope, receive, timed)
