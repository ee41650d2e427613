"""Log lines of a build under way, as the build's log sink writes them."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.entries import entries_of

__all__ = ["LogLine", "follow", "lines"]


# Lines are up to 16 KiB: what one follower holds at a time.
_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line. `n` counts from 1; `t` is seconds since the epoch; `end` is set on the last entry.

    `fields` is what else is known of it, see building.log.
    """

    n: int
    t: float
    step: str
    text: str
    fields: Mapping[str, Any] | None = None
    end: str | None = None


def _line(fields: dict[str, str]) -> LogLine:
    return LogLine(
        n=int(fields.get("n", 0)),
        t=float(fields.get("t", 0)),
        step=fields.get("step", ""),
        text=fields.get("text", ""),
        fields=json.loads(fields["fields"]) if "fields" in fields else None,
        end=fields.get("end"),
    )


async def lines(redis: AsyncRedis, build_id: UUID | str, after: int, limit: int) -> list[LogLine]:
    """Up to `limit` lines after line number `after`. The sink numbers its entries `<n>-0`."""
    found: Any = await redis.xrange(keys.build_log(build_id), min=f"({after}-0", count=limit)
    return [_line(fields) for _, fields in found]


async def follow(
    redis: AsyncRedis, build_id: UUID | str, after: int, idle: float
) -> AsyncIterator[LogLine | None]:
    """Lines after `after` as they come; None after `idle` silent seconds; ends after the last entry."""
    last = f"{after}-0"
    key = keys.build_log(build_id)
    while True:
        answer = await redis.xread({key: last}, count=_BATCH, block=int(idle * 1000))
        found = entries_of(answer)
        if not found:
            yield None
        for id_, fields in found:
            last = id_
            line = _line(fields)
            yield line
            if line.end is not None:
                return
