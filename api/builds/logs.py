"""A build's log: the stream while it is written, the object in the store afterwards."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, cast
from uuid import UUID

from redis.exceptions import RedisError

from api.builds.schemas import LogSlice, LogView
from api.context import Context
from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.errors import NotFound, Unavailable
from vyvo_dagster.store.records import Build
from vyvo_dagster.streams import logs
from vyvo_dagster.streams.logs import LogLine

__all__ = ["follow", "slice_of"]

_IDLE_SECONDS: Final = 5.0
_AWAY_SECONDS: Final = 1.0
_PAGE: Final = 20_000
_SETTLE_SECONDS: Final = 3.0
_SETTLE_PAUSE: Final = 0.05


async def slice_of(context: Context, build: Build, offset: int, limit: int) -> LogSlice:
    """Up to `limit` lines after line `offset`."""
    try:
        found = await _kept(context, build, offset, limit)
    except (RedisError, Unavailable):
        return LogSlice(lines=[], next_offset=offset, available=False)
    lines = [_view(line) for line in found]
    return LogSlice(lines=lines, next_offset=lines[-1].n if lines else offset)


async def follow(
    context: Context, build: Build, after: int
) -> AsyncGenerator[LogView | BuildState | None]:
    """Lines after line `after` as they come; None in silence; last of all the build's terminal state."""
    last = after
    while build.state not in BUILD.terminal:
        async with aclosing(_live(context, build.id, last)) as live:
            async for line in live:
                if line.end is not None:
                    yield await _terminal(context, build.id, BuildState(line.end))
                    return
                last = line.n
                yield _view(line)
        # Nothing came for a while: the end may have been reached without an entry that says so.
        build = await _row(context, build.id) or build
        yield None
    while found := await _kept(context, build, last, _PAGE):
        for line in found:
            yield _view(line)
            last = line.n
    yield build.state


async def _live(context: Context, build_id: UUID, after: int) -> AsyncGenerator[LogLine]:
    """Lines after line `after` until some seconds pass without one, or Redis goes away."""
    live = logs.follow(context.log_redis, build_id, after, _IDLE_SECONDS)
    try:
        async with aclosing(cast("AsyncGenerator[LogLine | None]", live)) as found:
            async for line in found:
                if line is None:
                    return
                yield line
    except RedisError:
        await asyncio.sleep(_AWAY_SECONDS)


async def _kept(context: Context, build: Build, after: int, limit: int) -> list[LogLine]:
    """Lines after line `after`, from the stream, or the object where the stream has none."""
    try:
        found = await logs.lines(context.redis, build.id, after, limit)
    except RedisError:
        if build.log_url is None:
            raise
        found = []
    found = [line for line in found if line.end is None]
    if found or build.log_url is None or (build.log_lines is not None and after >= build.log_lines):
        return found
    return await asyncio.to_thread(_stored, context, build.log_url, after, limit)


def _stored(context: Context, url: str, after: int, limit: int) -> list[LogLine]:
    try:
        whole = context.objects.get_bytes(url, max_bytes=128 << 20)
    except NotFound:
        # Expired: a build outlives its log.
        return []
    rows = whole.decode(errors="replace").splitlines()[after : after + limit]
    return [
        LogLine(**{k: row[k] for k in ("n", "t", "step", "text")}) for row in map(json.loads, rows)
    ]


async def _terminal(context: Context, build_id: UUID, said: BuildState) -> BuildState:
    """The row's terminal state: the log ends a moment before it, and who reads on wants both."""
    deadline = asyncio.get_running_loop().time() + _SETTLE_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        build = await _row(context, build_id)
        if build is not None and build.state in BUILD.terminal:
            return build.state
        await asyncio.sleep(_SETTLE_PAUSE)
    return said


async def _row(context: Context, build_id: UUID) -> Build | None:
    try:
        async with context.database.transaction() as store:
            return await store.builds.get(build_id)
    except Unavailable:
        return None


def _view(line: LogLine) -> LogView:
    return LogView(n=line.n, t=line.t, step=line.step, text=line.text)
