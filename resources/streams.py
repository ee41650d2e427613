"""Redis, for ops and sensors."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from dagster import ConfigurableResource
from pydantic import Field

from resources.loop import LoopThread
from vyvo_dagster.streams.client import AsyncRedis, Redis, connect, connect_sync, unavailable

__all__ = ["StreamsResource"]

T = TypeVar("T")


class StreamsResource(ConfigurableResource[None]):
    """Connections to Redis; Unavailable is raised where it does not answer."""

    url: str = Field(description="URL of the Redis server.")
    timeout: float = Field(default=20.0, gt=0, description="Seconds that one call may take.")

    @contextmanager
    def connection(self) -> Generator[Redis]:
        """A client for code that blocks, such as a build's log."""
        client = connect_sync(self.url)
        try:
            yield client
        finally:
            client.close()

    def call(self, work: Callable[[AsyncRedis], Awaitable[T]]) -> T:
        """Do `work` with a connection of its own, and close it."""

        async def with_connection() -> T:
            redis = connect(self.url, max_connections=2)
            try:
                with unavailable():
                    return await work(redis)
            finally:
                await redis.aclose()

        loop = LoopThread("streams", self.timeout)
        try:
            return loop.call(with_connection())
        finally:
            loop.close()
