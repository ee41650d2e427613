"""/dagster: who comes in, and what they may do there.

Dagster's webserver has no authentication of its own. Here every request needs a key (or a JWT) in
a header, or a browser's session; `dagster:read` reads, and `admin` alone changes anything: GraphQL
documents are parsed, and what is forwarded is written anew from what was judged, so that Dagster
reads nothing else than this did.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from api.audit.record import audit
from api.auth import Principal, address_of, require
from api.context import Context
from api.dagster_ui.documents import Documents
from api.dagster_ui.pages import login_page, safe_next
from api.dagster_ui.sessions import COOKIE, Sessions
from api.dagster_ui.sockets import relay_socket
from api.dagster_ui.upstream import Upstream
from api.errors import problem_of
from vyvo_dagster.domain.scope import Scope as KeyScope
from vyvo_dagster.domain.scope import grants
from vyvo_dagster.errors import Forbidden, InvalidInput, RateLimited, Unauthenticated, VyvoError
from vyvo_dagster.security.keys import TokenKind, parse_token

__all__ = ["PREFIX", "DagsterDoor"]

_log = logging.getLogger(__name__)

PREFIX: Final = "/dagster"
_GRAPHQL: Final = f"{PREFIX}/graphql"
# They read files of the code location's host by a path that the caller gives.
_CLOSED: Final = (f"{PREFIX}/notebook", f"{PREFIX}/dagit/notebook")
_FORM_BYTES: Final = 4096


class _Route:
    """What the timing reads of a route that was matched."""

    path = f"{PREFIX}/{{path}}"


class DagsterDoor:
    """ASGI middleware: answers below /dagster, passes on all else.

    Args:
        sessions: makes and reads browsers' cookies.
        upstream: Dagster's webserver; None where there is none.
        origins: further origins, such as the public one, from which a browser may change things.
    """

    def __init__(
        self, app: ASGIApp, sessions: Sessions, upstream: Upstream | None,
        origins: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self._app, self._sessions, self._upstream = app, sessions, upstream
        self._origins = origins
        self._documents = Documents()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        path = scope.get("path", "")
        if scope["type"] not in {"http", "websocket"} or not (
            path == PREFIX or path.startswith(f"{PREFIX}/")
        ):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._socket(WebSocket(scope, receive, send))
            return
        scope["route"] = _Route
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except (VyvoError, HTTPException) as error:
            response = await problem_of(request, error)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        upstream, path = self._upstream, request.url.path
        if upstream is None:
            raise HTTPException(404, "there is no Dagster here")
        _check_path(request)
        if path == PREFIX:
            return RedirectResponse(f"{PREFIX}/", 307)
        if path == f"{PREFIX}/login":
            return await self._login(request)
        if path == f"{PREFIX}/logout":
            return self._logout(request)
        try:
            return await self._admitted(request, upstream)
        except Unauthenticated:
            if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
                raise
            query = f"?{request.url.query}" if request.url.query else ""
            target = quote(safe_next(f"{quote(path)}{query}"), safe="")
            return RedirectResponse(f"{PREFIX}/login?next={target}", 303)

    async def _admitted(self, request: Request, upstream: Upstream) -> Response:
        principal, by_cookie = await self._principal(request)
        path = request.url.path
        require(principal, KeyScope.DAGSTER_READ)
        if path.rstrip("/") in _CLOSED:
            raise Forbidden("notebooks are not served here")
        reads = request.method in {"GET", "HEAD"}
        if by_cookie and not reads:
            self._check_origin(request)
        if path.rstrip("/") == _GRAPHQL:
            return await self._graphql(request, principal, upstream)
        if not reads:
            require(principal, KeyScope.ADMIN)
            await _note(request, principal, f"{request.method} {path}")
        return await upstream.forward(request, request.stream() if not reads else None)

    async def _principal(self, connection: HTTPConnection) -> tuple[Principal, bool]:
        """Who asks, and whether a cookie says so.

        Raises:
            Unauthenticated: nothing does, or it is not good.
        """
        context: Context = connection.app.state.context
        address, token = address_of(connection), _header_token(connection.headers)
        if token is not None:
            return await context.authenticator.authenticate(token, address), False
        session = self._sessions.read(connection.cookies.get(COOKIE))
        if session is None:
            raise Unauthenticated("sign in at /dagster/login, or send an API key")
        principal = await context.authenticator.of_session(
            session.prefix, session.text, lambda digest: self._sessions.proves(session, digest),
            address,
        )  # fmt: skip
        return principal, True

    def _check_origin(self, connection: HTTPConnection) -> None:
        """A browser's cookie counts only for what its own pages ask for.

        Raises:
            Forbidden: another site's page asks.
        """
        origin, host = connection.headers.get("origin"), connection.headers.get("host")
        own = {f"http://{host}", f"https://{host}"} | self._origins
        if origin is None or origin not in own:
            raise Forbidden("this request does not come from a page of this site")

    async def _graphql(
        self, request: Request, principal: Principal, upstream: Upstream
    ) -> Response:
        if request.method in {"GET", "HEAD"}:
            if "query" in request.query_params:
                raise InvalidInput("send GraphQL by POST, as application/json")
            return await upstream.forward(request, None)
        if request.method != "POST":
            raise HTTPException(405, "GraphQL takes GET and POST")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "send GraphQL as application/json")
        try:
            given = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise InvalidInput("the body is no JSON") from error
        body, mutations = await self._judged(given)
        if mutations:
            if not grants(principal.scopes, KeyScope.ADMIN):
                raise _refused(mutations)
            await _note(request, principal, ", ".join(mutations))
        return await upstream.forward(request, json.dumps(body).encode(), query=False)

    async def _judged(self, given: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
        """A GraphQL request as it goes on, and what it would change."""
        if not isinstance(given, dict) or not isinstance(given.get("query"), str):
            raise InvalidInput("a GraphQL request is an object with a query")
        # In a thread: a document of Dagster's UI takes some milliseconds.
        verdict = await asyncio.to_thread(self._documents.judge, given["query"])
        kept = {k: given[k] for k in ("query", "variables", "operationName") if k in given}
        return kept, verdict.mutations

    async def _socket(self, socket: WebSocket) -> None:
        upstream = self._upstream
        try:
            if upstream is None or socket.url.path != _GRAPHQL:
                raise Forbidden("there is no such socket")
            principal, by_cookie = await self._principal(socket)
            require(principal, KeyScope.DAGSTER_READ)
            if by_cookie:
                self._check_origin(socket)
        except (VyvoError, HTTPException) as error:
            # Before it is accepted, so that the handshake is answered with 403.
            _log.info("a socket to Dagster is refused: %s", error)
            await socket.close(1008)
            return

        async def admitted(message: Any) -> Any:
            payload = message.get("payload")
            if message.get("type") != "start":
                return message
            body, mutations = await self._judged(payload)
            if mutations:
                raise _refused(mutations)
            named = payload.get("operation_name")
            return {
                "id": message.get("id"), "type": "start",
                "payload": body if named is None else {**body, "operation_name": named},
            }  # fmt: skip

        async def still() -> None:
            now, _ = await self._principal(socket)
            require(now, KeyScope.DAGSTER_READ)

        context: Context = socket.app.state.context
        await relay_socket(socket, upstream.socket_url, admitted, still, context.stopping)

    async def _login(self, request: Request) -> Response:
        if request.method == "GET":
            return login_page(safe_next(request.query_params.get("next")))
        if request.method != "POST":
            raise HTTPException(405, "signing in takes GET and POST")
        self._check_origin(request)
        fields = parse_qs((await _form(request)).decode("ascii", "replace"), max_num_fields=8)
        key, target = fields.get("key", [""])[0].strip(), safe_next(fields.get("next", [""])[0])
        context: Context = request.app.state.context
        token = parse_token(key)
        try:
            if token is None or token.kind is not TokenKind.KEY:
                # Counted as any other failure.
                await context.authenticator.authenticate(key or "-", address_of(request))
                raise Unauthenticated("sign in with an API key")
            principal = await context.authenticator.authenticate(key, address_of(request))
            require(principal, KeyScope.DAGSTER_READ)
            digest = await context.authenticator.hash_of(principal.prefix)
        except (Unauthenticated, Forbidden, RateLimited) as error:
            return login_page(target, error.detail, error.status)
        ends = None if principal.expires_at is None else principal.expires_at.timestamp()
        cookie = self._sessions.make(principal.prefix, digest, ends)
        response = RedirectResponse(target, 303, {"Cache-Control": "no-store"})
        response.set_cookie(
            COOKIE, cookie, max_age=self._sessions.seconds, path=PREFIX, httponly=True,
            samesite="lax", secure=_is_secure(request, self._origins),
        )  # fmt: skip
        return response

    def _logout(self, request: Request) -> Response:
        if request.method != "POST":
            raise HTTPException(405, "signing out takes POST")
        self._check_origin(request)
        response = RedirectResponse(f"{PREFIX}/login", 303)
        response.delete_cookie(COOKIE, path=PREFIX)
        return response


def _check_path(request: Request) -> None:
    """Raise for a path that two servers could read differently."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    path = unquote(raw.decode("latin-1"))
    segments = path.split("/")
    if "\\" in path or "\0" in path or ".." in segments or "." in segments or "//" in path:
        raise HTTPException(404, "there is no such page")


def _header_token(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None


def _is_secure(request: Request, origins: frozenset[str]) -> bool:
    return request.url.scheme == "https" or any(
        urlsplit(o).scheme == "https" and urlsplit(o).netloc == request.headers.get("host")
        for o in origins
    )


async def _form(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES:
            raise HTTPException(413, "the form is too large")
    return body


def _refused(mutations: tuple[str, ...]) -> Forbidden:
    message = f"this key may only read; {', '.join(mutations)[:200]} needs the scope admin"
    # Dagster's UI shows what GraphQL calls errors.
    return Forbidden(message, scope=str(KeyScope.ADMIN), errors=[{"message": message}])


async def _note(request: Request, principal: Principal, what: str) -> None:
    context: Context = request.app.state.context
    detail: Mapping[str, Any] = {"address": address_of(request)}
    async with context.database.transaction() as store:
        await audit(store, principal, "dagster", what[:500], detail)
