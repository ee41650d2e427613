"""The OpenAPI document: scopes and problem answers added to what the routes declare."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from api.auth import Requires, token_of
from api.errors import MEDIA_TYPE, Problem

__all__ = ["add_openapi"]

_ANSWERS: Final[Mapping[int, str]] = {
    400: "The body is not UTF-8.",
    401: "No credential, or one that is unknown, expired or revoked.",
    403: "The credential lacks the scope, or what is asked for is another's.",
    404: "No such thing, or none that this key may see.",
    409: "The state of the thing does not allow it, or the Idempotency-Key was used otherwise.",
    413: "The body is too large.",
    422: "What was sent cannot be used; `errors` says where.",
    429: "Too many failed attempts to authenticate, or more than the key's limits; see `Retry-After`.",
    503: "A server that is needed does not answer; try again after `Retry-After`.",
}


def add_openapi(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Let `app`, made of `routers`, describe itself whole."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, routers)
        return app.openapi_schema

    app.openapi = document


def _document(app: FastAPI, routers: Sequence[APIRouter]) -> dict[str, Any]:
    made = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes,
        tags=app.openapi_tags,
    )  # fmt: skip
    schemas = made["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for route in (route for router in routers for route in router.routes):
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                _complete(made["paths"][route.path_format][method.lower()], route, method)
    return made


def _complete(operation: dict[str, Any], route: APIRoute, method: str) -> None:
    scope, secured = _security(route.dependant)
    if scope is not None:
        operation["x-required-scope"] = scope
        operation["description"] = (
            f"{operation.get('description', '')}\n\nScope: `{scope}`.".strip()
        )
    codes = {503}
    if secured:
        codes |= {401, 403, 429}
    if route.param_convertors:
        codes |= {404, 422}
    if operation.get("parameters"):
        codes.add(422)
    if method in {"POST", "PUT", "PATCH", "DELETE"}:
        codes |= {404, 409, 422}
    if "requestBody" in operation:
        codes |= {400, 413, 422}
    if route.path == "/healthz":
        codes = set()
    answers = operation["responses"]
    answers.pop("422", None)
    for code in sorted(codes):
        answers[str(code)] = {
            "description": _ANSWERS[code],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }


def _security(dependant: Dependant) -> tuple[str | None, bool]:
    """The scope that a route needs, and whether it needs a credential at all."""
    for each in dependant.dependencies:
        if isinstance(each.call, Requires):
            return str(each.call.scope), True
        if each.call is token_of:
            return None, True
        scope, secured = _security(each)
        if secured:
            return scope, True
    return None, False
