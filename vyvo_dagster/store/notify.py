"""Change notifications: NOTIFY inside a transaction, LISTEN on a connection of its own."""

from collections.abc import AsyncIterator

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["BUILDS_CHANNEL", "REGISTRY_CHANNEL", "WORKFLOW_CHANNEL", "listen", "notify"]

REGISTRY_CHANNEL = "vyvo_registry"
"""Versions, nodes or assignments changed; the payload is an id."""
WORKFLOW_CHANNEL = "vyvo_workflows"
"""`run:<id>`: a workflow run was queued or is to be canceled. `version:<id>`: one was pushed."""
BUILDS_CHANNEL = "vyvo_builds"
"""A build has ended; the payload is its id."""


async def notify(connection: AsyncConnection, channel: str, payload: str) -> None:
    """Tell listeners when this transaction commits."""
    await connection.execute(sa.select(sa.func.pg_notify(channel, payload)))


async def listen(dsn: str, *channels: str) -> AsyncIterator[tuple[str, str] | None]:
    """Yield (channel, payload) of each notification.

    None is yielded first, once the server listens: what changed before is to be read by then.
    A lost connection raises psycopg.OperationalError; the caller starts over.
    """
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=5)
    async with connection:
        for channel in channels:
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        yield None
        async for notice in connection.notifies():
            yield notice.channel, notice.payload
