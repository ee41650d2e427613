"""The size of a request's body, bounded before anything reads it."""

from collections.abc import Callable
from typing import Final

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem

__all__ = ["BodyLimit"]

_DEFAULT: Final = 1 << 20
_LARGE: Final = 16 << 20


def _limit_of(path: str) -> int:
    # Agents report logs and outputs in batches and name all that they run, and clients send jobs.
    if path.startswith("/api/jobs/") and path.endswith(("/progress", "/complete", "/batch")):
        return _LARGE
    if path.startswith("/api/nodes/") and path.endswith(("/heartbeat", "/reports")):
        return _LARGE
    return _DEFAULT


class BodyLimit:
    """ASGI middleware: 413 for a body over the limit of its route, by its length or by counting."""

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int] = _limit_of) -> None:
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, bounded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        detail = f"the body is larger than {limit} bytes"
        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > limit:
            await problem(413, "payload_too_large", detail)(scope, receive, send)
            return
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > limit:
                    raise HTTPException(413, detail)
            return message

        await self._app(scope, bounded, send)
