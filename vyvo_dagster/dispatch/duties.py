"""Periodic duties: loops that a server that goes away does not end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from redis.exceptions import RedisError

from vyvo_dagster.errors import Unavailable

__all__ = ["loops"]

log = logging.getLogger(__name__)


def loops(
    duties: Iterable[Callable[[], Awaitable[object]]], seconds: float = 1.0
) -> dict[str, Coroutine[Any, Any, None]]:
    """Each duty as a loop that runs until canceled, by the duty's name."""
    return {getattr(duty, "__name__", str(duty)): _every(seconds, duty) for duty in duties}


async def _every(seconds: float, duty: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await duty()
        except (RedisError, Unavailable) as error:
            log.warning("%s waits: %s", getattr(duty, "__name__", duty), error)
        except Exception:  # one duty that breaks must not end the others
            log.exception("%s broke", getattr(duty, "__name__", duty))
        await asyncio.sleep(seconds)
