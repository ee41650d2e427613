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
_PAGE: Final = 200
_PAGE_BYTES: Final = 1 << 20
_SETTLE_SECONDS: Final = 3.0
_SETTLE_PAUSE: Final = 0.05


async def slice_of(context: Context, build: Build, offset: int, limit: int) -> LogSlice:
    """Up to `limit` lines after line `offset`."""
    lines: list[LogView] = []
    try:
        async with aclosing(_kept(context, build, offset)) as kept:
            async for line in kept:
                lines.append(line)
                if len(lines) >= limit:
                    break
    except (RedisError, Unavailable):
        return LogSlice(lines=[], next_offset=offset, available=False)
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
    async with aclosing(_kept(context, build, last)) as kept:
        async for line in kept:
            yield line
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


async def _kept(context: Context, build: Build, after: int) -> AsyncGenerator[LogView]:
    """Lines after line `after`, from the stream, then the object where the stream has no more."""
    last = after
    try:
        while found := await logs.lines(context.redis, build.id, last, _PAGE):
            for line in found:
                if line.end is not None:
                    return
                last = line.n
                yield _view(line)
    except RedisError:
        if build.log_url is None:
            raise
    if build.log_url is None or (build.log_lines is not None and last >= build.log_lines):
        return
    async with aclosing(_stored(context, build.log_url, last)) as stored:
        async for line in stored:
            yield line


async def _stored(context: Context, url: str, after: int) -> AsyncGenerator[LogView]:
    """The same from the object, a page of bytes at a time: a log may be larger than this process."""
    offset, rest = 0, b""
    while True:
        try:
            page = await asyncio.to_thread(context.objects.get_range, url, offset, _PAGE_BYTES)
        except NotFound:
            # Expired: a build outlives its log.
            return
        offset += len(page)
        *rows, rest = (rest + page).split(b"\n")
        for raw in rows:
            row = json.loads(raw)
            if row["n"] > after:
                yield LogView(**row)
        if not page:
            return


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
    fields = None if line.fields is None else dict(line.fields)
    return LogView(n=line.n, t=line.t, step=line.step, text=line.text, fields=fields)
