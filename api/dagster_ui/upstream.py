"""Dagster's webserver: requests forwarded, answers streamed back."""

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final, Self
from urllib.parse import urlsplit, urlunsplit

import httpx
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from vyvo_dagster.errors import InvalidInput, Unavailable

__all__ = ["Upstream"]

# What belongs to one connection (RFC 9110, 7.6.1), and what is ours alone: Dagster needs no
# credential, and sees none.
_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade", "proxy-connection",
})  # fmt: skip
_KEPT_HERE: Final = frozenset({"authorization", "x-api-key", "cookie", "content-length", "expect"})
_NOT_BACK: Final = frozenset({"set-cookie", "server", "date"})
_TIMEOUT: Final = httpx.Timeout(120.0, connect=3.0, pool=10.0)
_LIMITS: Final = httpx.Limits(max_connections=100, max_keepalive_connections=20)


class Upstream:
    """One webserver, as `VYVO_DAGSTER_URL` names it; close it."""

    def __init__(self, url: str) -> None:
        self._base = url.rstrip("/")
        self._http = httpx.AsyncClient(
            timeout=_TIMEOUT, limits=_LIMITS, trust_env=False, follow_redirects=False
        )
        parts = urlsplit(self._base)
        scheme = "wss" if parts.scheme == "https" else "ws"
        self.socket_url = urlunsplit((scheme, parts.netloc, f"{parts.path}/graphql", "", ""))

    @classmethod
    def of(cls, url: str | None, prefix: str) -> Self | None:
        """The webserver at `url`, which has to serve under `prefix`; None where there is no URL.

        Raises:
            InvalidInput: the URL names no http server.
        """
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise InvalidInput("VYVO_DAGSTER_URL must be an http or https URL")
        # Without the prefix the UI's own links would lead out of it; only the api itself uses it.
        return cls(url) if parts.path.rstrip("/") == prefix else None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def forward(
        self, request: Request, body: bytes | AsyncIterable[bytes] | None, *, query: bool = True
    ) -> Response:
        """Send a request on; the answer as it comes.

        Args:
            body: what is sent; None sends nothing.
            query: whether the query string goes with it.

        Raises:
            Unavailable: Dagster does not answer.
        """
        rest = request.url.path.removeprefix("/dagster")
        raw: bytes = request.scope.get("raw_path") or rest.encode()
        # As it came, so that what was escaped stays so.
        rest = raw.decode("latin-1").partition("?")[0].removeprefix("/dagster")
        asked = f"?{request.url.query}" if query and request.url.query else ""
        headers = [
            (name, value) for name, value in request.headers.items()
            if name not in _HOP and name not in _KEPT_HERE
        ]  # fmt: skip
        try:
            sent = self._http.build_request(
                request.method, f"{self._base}{rest}{asked}", headers=headers, content=body
            )
            answer = await self._http.send(sent, stream=True)
        except httpx.InvalidURL as error:
            raise InvalidInput("the path is none") from error
        except httpx.HTTPError as error:
            raise Unavailable("Dagster does not answer; try again shortly") from error
        response = StreamingResponse(
            _bytes(answer), answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = [
            (name.lower(), value) for name, value in answer.headers.raw
            if name.lower().decode("latin-1") not in _HOP | _NOT_BACK
        ]  # fmt: skip
        response.headers.setdefault("x-frame-options", "DENY")
        response.headers.setdefault("x-content-type-options", "nosniff")
        response.headers.setdefault("referrer-policy", "same-origin")
        return response


async def _bytes(answer: httpx.Response) -> AsyncGenerator[bytes]:
    """The body as it was encoded; it ends early where Dagster breaks off."""
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()
