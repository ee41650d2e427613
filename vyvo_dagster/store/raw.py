"""The driver's own connection, for statements that are too hot for more than it."""

from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["raw_of"]


async def raw_of(connection: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    """What is under `connection`; its statements are of the same transaction."""
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)
    return raw
