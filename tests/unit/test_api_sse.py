"""Server-sent events: framing, and streams that stop."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from api.sse import frame, until


def test_an_event_on_the_wire() -> None:
    assert (
        frame("log", {"text": "a\nb"}, "7-0") == 'id: 7-0\nevent: log\ndata: {"text":"a\\nb"}\n\n'
    )
    assert frame("end", {}) == "event: end\ndata: {}\n\n"


class Source:
    """Counts up, waiting before each number from `slow_from` on, and knows when it was closed."""

    def __init__(self, count: int, slow_from: int = 1000) -> None:
        self.count, self.slow_from, self.closed = count, slow_from, False

    async def items(self) -> AsyncGenerator[int]:
        try:
            for n in range(self.count):
                if n >= self.slow_from:
                    await asyncio.sleep(60)
                yield n
        finally:
            self.closed = True


async def test_a_stream_ends_with_its_source() -> None:
    source = Source(3)
    assert [n async for n in until(asyncio.Event(), source.items())] == [0, 1, 2]
    assert source.closed


async def test_a_stream_ends_at_once_when_the_process_stops() -> None:
    source, stop = Source(5, slow_from=2), asyncio.Event()
    seen: list[int] = []
    async with asyncio.timeout(2):
        async for n in until(stop, source.items()):
            seen.append(n)
            if n == 1:
                asyncio.get_running_loop().call_later(0.01, stop.set)
    assert seen == [0, 1]
    assert source.closed


async def test_an_error_of_the_source_is_the_streams() -> None:
    async def bad() -> AsyncGenerator[int]:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        _ = [n async for n in until(asyncio.Event(), bad())]


async def test_a_client_that_goes_away_closes_the_source() -> None:
    source = Source(5, slow_from=1)

    async def read() -> None:
        async for _ in until(asyncio.Event(), source.items()):
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.02)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert source.closed
