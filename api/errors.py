"""Every error as an RFC 9457 problem document with a stable `code`."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from vyvo_dagster.errors import InvalidInput, RateLimited, Unauthenticated, Unavailable, VyvoError

__all__ = ["MEDIA_TYPE", "Problem", "add_handlers", "problem", "problem_of"]

MEDIA_TYPE: Final = "application/problem+json"
_RETRY_SECONDS: Final = "2"
# Codes of what the framework answers by itself.
_CODES: Final[Mapping[int, str]] = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "payload_too_large",
    415: "unsupported_media_type",
}


class Problem(BaseModel):
    """A problem document (RFC 9457). Clients switch on `code`; `detail` is for people."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:vyvo:problem:not_found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no such job"])
    code: str = Field(examples=["not_found"])


def problem(
    status: int,
    code: str,
    detail: str,
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """One problem document as an answer."""
    body = {
        "type": f"urn:vyvo:problem:{code}", "title": HTTPStatus(status).phrase, "status": status,
        "detail": detail, "code": code, **(extra or {}),
    }  # fmt: skip
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


async def _of_ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, VyvoError)
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, Unavailable | RateLimited):
        headers["Retry-After"] = _RETRY_SECONDS
    headers |= error.headers
    return problem(error.status, error.code, error.detail, error.extra, headers)


async def _of_redis(request: Request, _: Exception) -> JSONResponse:
    return await _of_ours(request, Unavailable("the queue does not answer; try again shortly"))


async def _of_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "http_error")
    return problem(error.status_code, code, str(error.detail), headers=error.headers)


async def problem_of(request: Request, error: VyvoError | HTTPException) -> JSONResponse:
    """The answer to an error, for what answers without the framework."""
    if isinstance(error, VyvoError):
        return await _of_ours(request, error)
    return await _of_http(request, error)


async def _of_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = cast("Sequence[Mapping[str, Any]]", error.errors())
    # What was sent is not echoed: it may be a secret, or not JSON.
    errors = [{"loc": [str(p) for p in e["loc"]], "msg": str(e["msg"])} for e in found[:50]]
    first = errors[0] if errors else {"loc": [], "msg": "invalid"}
    where = ".".join(first["loc"][1:]) or ".".join(first["loc"]) or "request"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return problem(422, InvalidInput.code, f"{where}: {first['msg']}{more}", {"errors": errors})


async def _of_bug(_: Request, _error: Exception) -> JSONResponse:
    # The server logs the trace; the client learns nothing of the inside.
    return problem(500, VyvoError.code, "the server failed; the error is in its log")


def add_handlers(app: FastAPI) -> None:
    """Answer every error of `app` as a problem."""
    app.add_exception_handler(VyvoError, _of_ours)
    app.add_exception_handler(RedisError, _of_redis)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(Exception, _of_bug)
