"""One dependency that every route declares: which scope it needs."""

from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from api.authenticator import KEPT_SECONDS, Principal
from api.context import Context
from vyvo_dagster.domain.scope import Scope, grants
from vyvo_dagster.errors import Forbidden, Unauthenticated

__all__ = [
    "ArtifactsRead",
    "BuildsRead",
    "BuildsWrite",
    "EventsRead",
    "IsAdmin",
    "IsBeatingNode",
    "IsNode",
    "JobsRead",
    "JobsWrite",
    "ModelsRead",
    "ModelsWrite",
    "NodesRead",
    "NodesWrite",
    "Principal",
    "Requires",
    "WorkflowsRead",
    "WorkflowsRun",
    "WorkflowsWrite",
    "address_of",
    "check_owner",
    "own_node",
    "require",
    "token_of",
]

_BEARER: Final = HTTPBearer(
    auto_error=False, scheme_name="Bearer", description="`Authorization: Bearer vyk_...`, or a JWT."
)
_HEADER: Final = APIKeyHeader(
    name="X-API-Key",
    auto_error=False,
    scheme_name="ApiKey",
    description="The same key, in a header.",
)

Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
KeyHeader = Annotated[str | None, Security(_HEADER)]


async def token_of(bearer: Bearer, header: KeyHeader) -> str:
    """The credential that a request carries.

    Raises:
        Unauthenticated: it carries none.
    """
    token = bearer.credentials if bearer is not None else header
    if not token:
        raise Unauthenticated("no API key; send Authorization: Bearer <key>")
    return token


def address_of(connection: HTTPConnection) -> str | None:
    """Where a request comes from: the peer, or what a proxy said that the server trusts."""
    return None if connection.client is None else connection.client.host


def require(principal: Principal, scope: Scope) -> None:
    """Raise Forbidden unless the principal holds `scope`."""
    if not grants(principal.scopes, scope):
        raise Forbidden(f"this key lacks the scope {scope}", scope=str(scope))


class Requires:
    """Dependency: the principal, if it holds `scope`.

    Raises Unauthenticated without a good credential, Forbidden without the scope.
    """

    def __init__(self, scope: Scope, kept_seconds: float = KEPT_SECONDS) -> None:
        self.scope = scope
        self._kept_seconds = kept_seconds

    async def __call__(
        self, request: Request, token: Annotated[str, Depends(token_of)]
    ) -> Principal:
        context: Context = request.app.state.context
        principal = await context.authenticator.authenticate(
            token, address_of(request), self._kept_seconds
        )
        require(principal, self.scope)
        return principal


IsAdmin = Annotated[Principal, Depends(Requires(Scope.ADMIN))]
IsNode = Annotated[Principal, Depends(Requires(Scope.NODE))]
# The statement that writes heartbeats looks at the credential itself.
IsBeatingNode = Annotated[Principal, Depends(Requires(Scope.NODE, 60.0))]
BuildsRead = Annotated[Principal, Depends(Requires(Scope.BUILDS_READ))]
BuildsWrite = Annotated[Principal, Depends(Requires(Scope.BUILDS_WRITE))]
ModelsRead = Annotated[Principal, Depends(Requires(Scope.MODELS_READ))]
ModelsWrite = Annotated[Principal, Depends(Requires(Scope.MODELS_WRITE))]
NodesRead = Annotated[Principal, Depends(Requires(Scope.NODES_READ))]
NodesWrite = Annotated[Principal, Depends(Requires(Scope.NODES_WRITE))]
JobsRead = Annotated[Principal, Depends(Requires(Scope.JOBS_READ))]
JobsWrite = Annotated[Principal, Depends(Requires(Scope.JOBS_WRITE))]
ArtifactsRead = Annotated[Principal, Depends(Requires(Scope.ARTIFACTS_READ))]
EventsRead = Annotated[Principal, Depends(Requires(Scope.EVENTS_READ))]
WorkflowsRead = Annotated[Principal, Depends(Requires(Scope.WORKFLOWS_READ))]
WorkflowsWrite = Annotated[Principal, Depends(Requires(Scope.WORKFLOWS_WRITE))]
WorkflowsRun = Annotated[Principal, Depends(Requires(Scope.WORKFLOWS_RUN))]


def own_node(principal: Principal, node_id: UUID | None = None) -> UUID:
    """The node that this credential is of.

    Raises:
        Forbidden: it is no node's, or not the one that the path names.
    """
    if principal.node_id is None or (node_id is not None and principal.node_id != node_id):
        raise Forbidden("this credential is another node's")
    return principal.node_id


def check_owner(principal: Principal, tenant: str, what: str) -> None:
    """Raise Forbidden unless the principal is an admin or of the tenant that owns `what`."""
    if principal.sees not in {None, tenant}:
        raise Forbidden(f"{what} belongs to another tenant")
