"""Which hosts execute builds: their workers say so every few seconds.

How many builds may be at work in all is counted by them; each host holds its own limit besides.
"""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

from redis.exceptions import RedisError

from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis, Redis

__all__ = ["announced", "count"]

_EVERY_SECONDS: Final = 10.0
_LIFE_SECONDS: Final = 45.0


async def count(redis: AsyncRedis) -> int:
    """How many hosts there are; 1 where none has said so, or Redis is away."""
    with suppress(RedisError):
        found = await redis.zcount(keys.BUILD_HOSTS, time.time() - _LIFE_SECONDS, "+inf")
        return max(int(found), 1)
    return 1


@contextmanager
def announced(redis: Redis, host: str) -> Generator[None]:
    """Say that `host` executes builds for as long as the block runs; owns a thread."""
    done = threading.Event()

    def tell() -> None:
        while True:
            with suppress(RedisError):
                now = time.time()
                redis.zadd(keys.BUILD_HOSTS, {host: now})
                redis.zremrangebyscore(keys.BUILD_HOSTS, "-inf", now - 100 * _LIFE_SECONDS)
            if done.wait(_EVERY_SECONDS):
                return

    thread = threading.Thread(target=tell, name="build-host", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)
