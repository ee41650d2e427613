"""Failed authentication, limited by address: guessing and hammering reach neither database nor log."""

import asyncio
import ipaddress
import logging
import math
import time
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError

from vyvo_dagster.errors import RateLimited
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.rates import take

__all__ = ["Failures"]

_log = logging.getLogger(__name__)

_REDIS_SECONDS: Final = 0.25
_ADDRESSES: Final = 10_000
_IPV6_PREFIX: Final = 64


class Failures:
    """A token bucket for each address, in Redis, shared by all api processes.

    A failure takes a token. Where there is none, the address is refused before anything is looked
    up, until one has come back. What has been proven lately is not (see `Authenticator`): nobody
    locks out who works behind the same address. While Redis is away nothing is limited.

    Args:
        per_minute: failures an address may make a minute, and at once; 0 limits nothing.
        clock: monotonic seconds.
    """

    def __init__(
        self, redis: AsyncRedis, per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis, self._per_minute, self._clock = redis, per_minute, clock
        self._refused_until: dict[str, float] = {}

    def check(self, address: str | None) -> None:
        """Raise RateLimited while an address is refused."""
        if address is None or not self._refused_until:
            return
        place = _place(address)
        left = self._refused_until.get(place, 0.0) - self._clock()
        if left > 0:
            raise _limited(left)
        self._refused_until.pop(place, None)

    async def note(self, address: str | None) -> None:
        """Count a failure.

        Raises:
            RateLimited: it was one too many.
        """
        if address is None or self._per_minute == 0:
            return
        place, rate = _place(address), self._per_minute / 60
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                found = await take(self._redis, keys.failures(place), rate, self._per_minute, 1)
        except (RedisError, TimeoutError, OSError) as error:
            _log.warning("failures are not counted: %s", error or type(error).__name__)
            return
        if found.taken:
            return
        left = (1 - found.left) / rate
        if place not in self._refused_until:
            _log.warning("%s fails to authenticate too often; it is refused", place)
        if len(self._refused_until) >= _ADDRESSES:
            self._refused_until.clear()
        self._refused_until[place] = self._clock() + left
        raise _limited(left)


def _limited(seconds: float) -> RateLimited:
    error = RateLimited("too many failed attempts to authenticate from this address")
    error.headers = {"Retry-After": str(max(math.ceil(seconds), 1))}
    return error


def _place(address: str) -> str:
    """The address; of IPv6 the network of 64 bits, which is one customer's."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _IPV6_PREFIX), strict=False))
