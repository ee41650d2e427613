"""Connections to Redis, and the error it becomes when the server is away."""

from collections.abc import Generator
from contextlib import contextmanager

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as SyncRetry

from vyvo_dagster.errors import Unavailable

__all__ = ["AsyncRedis", "Redis", "connect", "connect_sync", "unavailable"]

AsyncRedis = redis.asyncio.Redis
Redis = redis.Redis

# Longer than any BLOCK that our loops ask for.
_SOCKET_TIMEOUT = 15.0


def connect(url: str, max_connections: int = 64) -> AsyncRedis:
    """A pooled asynchronous client; nothing is sent until the first command."""
    return redis.asyncio.from_url(
        url,
        decode_responses=True,
        # What a stranger wrote must not end who reads it.
        encoding_errors="replace",
        socket_timeout=_SOCKET_TIMEOUT,
        socket_connect_timeout=5,
        max_connections=max_connections,
        health_check_interval=30,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
    )


def connect_sync(url: str) -> Redis:
    """A client for code that runs in a Dagster op or sensor."""
    return redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=_SOCKET_TIMEOUT,
        socket_connect_timeout=5,
        retry=SyncRetry(ExponentialBackoff(cap=0.2, base=0.02), 2),
    )


@contextmanager
def unavailable() -> Generator[None]:
    """Turn a lost connection into Unavailable, so that no redis error reaches a caller."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise Unavailable("the queue does not answer; try again shortly") from error
