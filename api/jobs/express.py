"""`POST /api/jobs` without the framework: the one route whose cost is the framework's, not its work's.

Only a plain request that is well formed is answered here, with an Idempotency-Key or without.
Whatever is not (no key, another content type, a body that does not validate, a Prefer) goes on to the
route of the same path in `endpoints.py`, which also describes both in the OpenAPI document, with its
body given back.
"""

import re
from collections.abc import Iterable
from typing import Final

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import require
from api.context import Context
from api.errors import problem_of
from api.idempotency import KEY_CHARS, KEY_PATTERN, Once, fingerprint
from api.jobs import submission
from api.jobs.schemas import JobAccepted, JobRequest
from vyvo_dagster.domain.scope import Scope as KeyScope
from vyvo_dagster.errors import VyvoError

__all__ = ["Express"]

_PATH: Final = "/api/jobs"
_ROUTE: Final = f"POST {_PATH}"
_TRACEPARENT_CHARS: Final = 256
_KEY: Final = re.compile(KEY_PATTERN)


class _Route:
    """What the timing reads of a route that was matched."""

    path = _PATH


class _Disconnected(Exception):
    """The client went away before its body was whole."""


class Express:
    """ASGI middleware, the innermost: answers plain submissions, passes on all else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        sent: dict[bytes, bytes] = dict(scope["headers"])
        token = _token(sent)
        key = sent.get(b"idempotency-key")
        trace = sent.get(b"traceparent", b"")
        if (
            token is None
            or (key is not None and not _one_key(scope["headers"], key))
            or b"prefer" in sent
            or len(trace) > _TRACEPARENT_CHARS
            or sent.get(b"content-type", b"").partition(b";")[0].strip() != b"application/json"
        ):
            await self._app(scope, receive, send)
            return
        scope["route"] = _Route
        try:
            body = await _body(receive)
            try:
                context: Context = scope["app"].state.context
                headers, answer = await _submit(
                    context, token, _address(scope), _once(key, body), body, trace.decode()
                )
            except (ValidationError, UnicodeDecodeError):
                await self._app(scope, _again(body, receive), send)
                return
        except _Disconnected:
            return
        except (VyvoError, HTTPException) as error:
            await (await problem_of(Request(scope), error))(scope, receive, send)
            return
        response = Response(answer.model_dump_json(), 202, headers, "application/json")
        await response(scope, receive, send)


async def _submit(
    context: Context, token: str, address: str | None, once: Once, body: bytes, trace: str
) -> tuple[dict[str, str], JobAccepted]:
    principal = await context.authenticator.authenticate(token, address)
    require(principal, KeyScope.JOBS_WRITE)
    request = JobRequest.model_validate_json(body)
    traceparent = submission.traceparent_or_none(trace or None)
    limits = await context.rates.take(principal, 1)
    accepted = await submission.submit(context, principal, [request], once, traceparent)
    return limits, accepted[0]


def _address(scope: Scope) -> str | None:
    client = scope.get("client")
    return None if client is None else str(client[0])


def _one_key(headers: Iterable[tuple[bytes, bytes]], key: bytes) -> bool:
    """Whether an idempotency key is well formed and the only one."""
    alone = sum(name == b"idempotency-key" for name, _ in headers) == 1
    return alone and len(key) <= KEY_CHARS and _KEY.fullmatch(key.decode("latin-1")) is not None


def _once(key: bytes | None, body: bytes) -> Once:
    if key is None:
        return Once(None, _ROUTE, b"")
    return Once(key.decode(), _ROUTE, fingerprint(_ROUTE, body))


def _token(headers: dict[bytes, bytes]) -> str | None:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token.isascii():
        return None
    return token.decode().strip() or None


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body that was read, then goes on with `receive`."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
