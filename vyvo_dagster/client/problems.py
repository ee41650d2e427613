"""Answers that are no success as the errors of `vyvo_dagster.errors`."""

import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, cast

import httpx

from vyvo_dagster.errors import VyvoError

__all__ = ["problem"]

_MEMBERS: Final = frozenset({"type", "title", "status", "code", "detail"})
_SHOWN: Final = 200


def problem(response: httpx.Response) -> VyvoError:
    """The error that a problem document (RFC 9457) tells of.

    Its class is the one of `errors` with that code, else the one of that status, else VyvoError;
    `status` and `code` are always the document's own, `extra` its further members. An answer that
    is no problem document (a proxy's) has the code `not_a_problem`.
    """
    try:
        body: Any = json.loads(response.content)
        code, detail = str(body["code"]), str(body["detail"])
        extra = {str(k): v for k, v in body.items() if k not in _MEMBERS}
    except (ValueError, KeyError, TypeError, AttributeError):
        said = " ".join(response.text[:_SHOWN].split())
        detail = (
            f"the server answered {response.status_code} {_phrase(response.status_code)}: {said}"
        )
        code, extra = "not_a_problem", cast("Mapping[str, Any]", {})
    cls = _BY_CODE.get(code) or _BY_STATUS.get(response.status_code, VyvoError)
    error = cls(detail)
    error.extra = dict(extra)
    # A server newer than this client has codes of its own.
    error.status, error.code = response.status_code, code  # type: ignore[misc]
    return error


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _tree(cls: type[VyvoError]) -> Iterator[type[VyvoError]]:
    yield cls
    for below in cls.__subclasses__():
        yield from _tree(below)


def _ours() -> list[type[VyvoError]]:
    return [cls for cls in _tree(VyvoError) if cls.__module__ == VyvoError.__module__]


_BY_CODE: Final = {cls.code: cls for cls in _ours()}
# The nearest to the root: reversed, so that the first of a status wins.
_BY_STATUS: Final = {cls.status: cls for cls in reversed(_ours())}
