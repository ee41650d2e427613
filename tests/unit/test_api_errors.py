"""Errors as problem documents, each of the tree and those that nobody raised on purpose."""

import httpx
import pytest
from fastapi import FastAPI, HTTPException

from api.errors import add_handlers
from vyvo_dagster import errors
from vyvo_dagster.client.problems import problem


def of_tree(kind: type[errors.VyvoError]) -> list[type[errors.VyvoError]]:
    return [kind, *(each for sub in kind.__subclasses__() for each in of_tree(sub))]


async def answer_to(error: Exception) -> httpx.Response:
    app = FastAPI()
    add_handlers(app)

    @app.get("/")
    async def _() -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/")


@pytest.mark.parametrize("kind", of_tree(errors.VyvoError))
async def test_each_error_answers_with_its_status_and_code(kind: type[errors.VyvoError]) -> None:
    answer = await answer_to(kind("what to do", index=3))
    assert answer.status_code == kind.status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": f"urn:vyvo:problem:{kind.code}", "title": answer.json()["title"],
        "status": kind.status, "detail": "what to do", "code": kind.code, "index": 3,
    }  # fmt: skip
    assert ("retry-after" in answer.headers) == (kind.status in {429, 503})
    read = problem(answer)
    assert (read.code, read.detail, read.extra) == (kind.code, "what to do", {"index": 3})
    # An error that one layer has for itself is a relative of the common tree to the client.
    assert type(read) is kind or (
        kind.__module__ != errors.__name__ and issubclass(kind, type(read))
    )


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (409, '{"code": "of_tomorrow", "detail": "x"}', errors.Conflict, "of_tomorrow"),
        (418, '{"code": "teapot", "detail": "x"}', errors.VyvoError, "teapot"),
        (502, "<html>bad gateway</html>", errors.VyvoError, "not_a_problem"),
        (404, "[]", errors.NotFound, "not_a_problem"),
    ],
)
def test_what_a_client_does_not_know_is_the_nearest_error(
    status: int, body: str, kind: type[errors.VyvoError], code: str
) -> None:
    read = problem(httpx.Response(status, text=body))
    assert (type(read), read.code, read.status) == (kind, code, status)


async def test_a_bug_tells_the_client_nothing_of_the_inside() -> None:
    answer = await answer_to(RuntimeError("password=hunter2"))
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "hunter2" not in answer.text


async def test_the_frameworks_own_errors_are_problems_too() -> None:
    answer = await answer_to(HTTPException(415, "send JSON"))
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert answer.json()["detail"] == "send JSON"
