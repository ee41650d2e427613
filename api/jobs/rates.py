"""Rate limits of API keys, told by the RateLimit fields (draft-ietf-httpapi-ratelimit-headers-10)."""

import asyncio
import logging
import math
import time
from typing import Final

from redis.exceptions import RedisError

from api.authenticator import Principal
from vyvo_dagster.errors import InvalidInput, RateLimited
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.rates import take

__all__ = ["Rates"]

log = logging.getLogger(__name__)

_REDIS_SECONDS: Final = 0.25
_PAUSE_SECONDS: Final = 1.0


class Rates:
    """Token buckets in Redis. While Redis is away everything is let through."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis
        self._paused_until = 0.0

    async def take(self, principal: Principal, jobs: int) -> dict[str, str]:
        """Take a token for each job; the answer's header fields, none for a key without a limit.

        Raises:
            RateLimited: too few are left; `headers` say when to try again.
            InvalidInput: more jobs at once than the key may ever submit.
        """
        rate, burst = principal.limits.rate_per_second, principal.limits.burst
        if rate is None or burst is None or time.monotonic() < self._paused_until:
            return {}
        if jobs > burst:
            raise InvalidInput(f"this key may submit {burst} jobs at once; send them in parts")
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                found = await take(self._redis, keys.rate(principal.key_id), rate, burst, jobs)
        except (RedisError, TimeoutError, OSError) as error:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            log.warning("rate limits are not held: %s", error or type(error).__name__)
            return {}
        # A quota of `burst` that is whole again after the time that filling the bucket takes.
        full = math.ceil((burst - found.left) / rate)
        headers = {
            "RateLimit-Policy": f'"jobs";q={burst};w={math.ceil(burst / rate)}',
            "RateLimit": f'"jobs";r={math.floor(found.left)};t={full}',
        }
        if found.taken:
            return headers
        wait = max(math.ceil((jobs - found.left) / rate), 1)
        error = RateLimited(f"this key may submit {rate:g} jobs a second; try again in {wait} s")
        error.headers = {**headers, "Retry-After": str(wait)}
        raise error
