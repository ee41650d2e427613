"""Joining: an agent starts, and what its earlier start held goes back to the queue."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Request
from redis.exceptions import RedisError
from uuid_utils.compat import uuid7

from api.auth import Principal, address_of, token_of
from api.context import Context, Ctx
from vyvo_dagster.dispatch.ends import count_ends
from vyvo_dagster.dispatch.requeue import requeue_lost
from vyvo_dagster.domain.node import NodeEventKind, parse_node_name
from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.errors import Forbidden, Unauthenticated
from vyvo_dagster.protocol.node import CredentialAnswer, Register, RegisterAnswer, S3Access
from vyvo_dagster.security.keys import TokenKind, mint, parse_token, same_secret
from vyvo_dagster.store.attempts import LOST, Gone
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Job
from vyvo_dagster.streams import keys

__all__ = ["Joiner", "register", "replace_credential"]

_log = logging.getLogger(__name__)

_NODES_TENANT = "nodes"
_OVERLAP = timedelta(days=1)
_REDIS_SECONDS: Final = 0.5


async def _joiner(
    request: Request, context: Ctx, token: Annotated[str, Depends(token_of)]
) -> Principal | None:
    """Who asks to join: a node by its own credential, or None for the holder of the join token.

    A dependency, so that the body of who may not join is not looked at.

    Raises:
        Unauthenticated: it is neither.
    """
    expected = context.settings.join_token
    if expected is not None and same_secret(token, expected.get_secret_value()):
        return None
    try:
        principal = await context.authenticator.authenticate(token, address_of(request))
    except Unauthenticated as error:
        raise Unauthenticated("neither the join token nor a node's credential") from error
    if principal.node_id is None:
        raise Forbidden("an API key cannot join a node; use the join token")
    return principal


Joiner = Annotated[Principal | None, Depends(_joiner)]


async def register(context: Context, holder: Principal | None, body: Register) -> RegisterAnswer:
    """Take a node in, under the name that it gives.

    A start that is new ends what an earlier one had: its loaded versions are asked for again, and
    its attempts are lost (one that left in order has handed them back already).

    Raises:
        Forbidden: the credential is that of a node with another name.
    """
    parse_node_name(body.name)
    credential: str | None = None
    lost: list[Job] = []
    async with context.database.transaction() as store:
        if holder is not None:
            own = await store.nodes.get(holder.node_id) if holder.node_id is not None else None
            if own is None or own.name != body.name:
                raise Forbidden(f"this credential is not that of a node named {body.name}")
        node_id, earlier = await store.nodes.join(
            id=uuid7(), name=body.name, boot_id=body.boot_id, labels=body.labels,
            capabilities=body.capabilities.model_dump(mode="json"),
        )  # fmt: skip
        if earlier is not None:
            await store.assignments.restart(node_id)
            for job in await store.attempts.of_node(node_id):
                changed = await requeue_lost(store, job, Gone(LOST), charged=True)
                if changed is not None:
                    lost.append(changed)
        if holder is None:
            # Those before it end, so that a copied disk cannot go on beside this node.
            await store.keys.revoke_node(node_id)
            credential, expires_at = await _credential(context, store, node_id, body.name)
        else:
            expires_at = holder.expires_at
        await store.nodes.add_event(
            id=uuid7(), node_id=node_id, kind=NodeEventKind.JOINED,
            detail={"boot_id": str(body.boot_id), "attempts_lost": len(lost)},
        )  # fmt: skip
    context.authenticator.forget(node_id=node_id)
    if earlier is not None:
        await _empty(context, node_id)
    context.relay.kick()
    count_ends(lost)
    await context.announcer.changes(lost)
    settings, s3 = context.settings, context.s3
    return RegisterAnswer(
        node_id=node_id,
        credential=credential,
        credential_seconds=None if expires_at is None else _left(expires_at),
        redis_url=settings.redis_url,
        s3=S3Access(
            endpoint=s3.endpoint, access_key=s3.access_key,
            secret_key=s3.secret_key.get_secret_value(), region=s3.region,
            bucket_prefix=s3.bucket_prefix,
        ),
        artifact_ttl_seconds=settings.artifact_ttl_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
    )  # fmt: skip


async def _empty(context: Context, node_id: UUID) -> None:
    """Delete the orders of an earlier start: no version is loaded for this one yet, so it has none."""
    try:
        async with asyncio.timeout(_REDIS_SECONDS):
            await context.redis.delete(keys.node(node_id))
    except (RedisError, TimeoutError, OSError) as error:
        # The agent passes over what it is not ordered any more.
        _log.warning("the orders of an earlier start of %s stay: %s", node_id, error)


async def replace_credential(
    context: Context, holder: Principal, node_id: UUID
) -> CredentialAnswer:
    """Give a node its next credential.

    The one that it asks with stays good for a day: an answer that is lost on its way, or an agent
    that dies before it has written it down, locks no node out. All others end.
    """
    async with context.database.transaction() as store:
        node = await store.nodes.get(node_id)
        if node is None:
            raise Forbidden("this credential is that of no node")
        credential, expires_at = await _credential(context, store, node_id, node.name)
        made = parse_token(credential)
        assert made is not None
        await store.keys.end_by(holder.prefix, datetime.now(UTC) + _OVERLAP)
        await store.keys.drop_node_but(node_id, [holder.prefix, made.prefix])
        await store.nodes.add_event(
            id=uuid7(), node_id=node_id, kind=NodeEventKind.CREDENTIAL_REPLACED,
            detail={"before": holder.prefix, "now": made.prefix},
        )  # fmt: skip
    context.authenticator.forget(node_id=node_id)
    return CredentialAnswer(credential=credential, credential_seconds=_left(expires_at))


def _left(expires_at: datetime) -> float:
    return max((expires_at - datetime.now(UTC)).total_seconds(), 0.0)


async def _credential(
    context: Context, store: Store, node_id: UUID, name: str
) -> tuple[str, datetime]:
    """A new credential and its end."""
    expires_at = datetime.now(UTC) + timedelta(seconds=context.settings.node_credential_seconds)
    token = mint(TokenKind.NODE)
    await store.keys.add(
        id=uuid7(), prefix=token.prefix, secret_sha256=token.digest, name=f"node {name}",
        tenant=_NODES_TENANT, scopes=[Scope.NODE], node_id=node_id, expires_at=expires_at,
    )  # fmt: skip
    return token.text, expires_at
