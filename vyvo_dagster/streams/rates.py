"""Token buckets: how many jobs a key may still submit, how often an address may fail."""

from dataclasses import dataclass
from typing import Final

from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.scripts import Script

__all__ = ["Taken", "take"]

# KEYS: bucket. ARGV: tokens a second, size, tokens wanted. The server's clock is the only one.
# Answers whether they were taken, and the tokens left, as text since Lua's numbers are cut.
_TAKE: Final = Script("""
local rate, size, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = size
if kept[1] then
  tokens = math.min(size, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) * rate)
end
local taken = 0
if tokens >= wanted then
  taken = 1
  tokens = tokens - wanted
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(size / rate * 1000) + 1000)
return {taken, string.format('%.6f', tokens)}
""")


@dataclass(frozen=True, slots=True)
class Taken:
    """Whether the tokens were taken, and how many are left."""

    taken: bool
    left: float


async def take(
    redis: AsyncRedis, bucket: str, rate_per_second: float, burst: int, wanted: int
) -> Taken:
    """Take `wanted` tokens of the bucket at a key, all or none, in one call."""
    taken, left = await _TAKE(redis, [bucket], [rate_per_second, burst, wanted])
    return Taken(bool(taken), float(left))
