"""Credentials that a node needs for what it is to load: made when it asks, and kept nowhere."""

from uuid import UUID

from uuid_utils.compat import uuid7

from api.auth import Principal
from api.context import Context
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.errors import NotFound
from vyvo_dagster.protocol.node import AssignmentCredentials, RegistryAccess
from vyvo_dagster.security.pull_tokens import pull_token
from vyvo_dagster.security.secrets import RegistryLogin, registry_host

__all__ = ["for_assignment"]


async def for_assignment(
    context: Context, principal: Principal, node_id: UUID, assignment_id: UUID
) -> AssignmentCredentials:
    """As whom the node may pull the image of an assignment of its own.

    Raises:
        NotFound: no such assignment is in force there.
        Unavailable: the provider of secrets or the registry does not answer.
    """
    async with context.database.transaction() as store:
        assignment = await store.assignments.get(node_id, assignment_id)
        if assignment is None or assignment.state is AssignmentState.REMOVED:
            raise NotFound("no such assignment on this node")
        version = await store.models.version_by_id(assignment.version_id)
    image = None if version is None else version.runner_image
    if image is None or "://" in image:
        return AssignmentCredentials(registry=None)
    host = registry_host(image)
    login = await context.secrets.registry_login(host)
    if login is None:
        return AssignmentCredentials(registry=None)
    access = await _access(context, login, image)
    async with context.database.transaction() as store:
        await store.keys.audit(
            id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix,
            action="registry_access", subject=str(node_id),
            detail={"assignment_id": str(assignment_id), "registry": host,
                    "by": "login" if access.token is None else "token"},
        )  # fmt: skip
    return AssignmentCredentials(registry=access)


async def _access(context: Context, login: RegistryLogin, image: str) -> RegistryAccess:
    """A token for this repository where the registry gives such, else the login itself."""
    token = await pull_token(context.http, login, _repository(image))
    if token is None:
        return RegistryAccess(
            host=login.host, username=login.username, password=login.password,
            expires_in_seconds=context.settings.secret_node_seconds,
        )  # fmt: skip
    return RegistryAccess(host=login.host, token=token.text, expires_in_seconds=token.seconds)


def _repository(image: str) -> str:
    """The repository of a reference, without registry, tag and digest."""
    name = image.partition("@")[0]
    host = registry_host(name)
    path = name.removeprefix(f"{host}/")
    head, slash, last = path.rpartition("/")
    path = f"{head}{slash}{last.partition(':')[0]}"
    return f"library/{path}" if host == "docker.io" and "/" not in path else path
