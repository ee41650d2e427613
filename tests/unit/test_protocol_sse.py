"""Server-sent events: the same events whatever the chunks."""

import itertools
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.protocol.sse import ServerSentEvent, events, events_of

BODY = (
    b'event: start\nid: 1-0\ndata: {"id":"a"}\n\n'
    b": a comment\n\n"
    b"event: log\r\ndata: one\r\ndata: two\r\n\r\n"
    b"data:no space\r\r"
    b"event: empty\nid: 2-0\n\n"
    + "event: log\ndata: a\u2028b\u0085c\n\n".encode()
    + b"event: completed\ndata: cut off"
)
EXPECTED = [
    ServerSentEvent("start", '{"id":"a"}', "1-0"),
    ServerSentEvent("log", "one\ntwo", "1-0"),
    ServerSentEvent("message", "no space", "1-0"),
    ServerSentEvent("log", "a\u2028b\u0085c", "2-0"),
]


async def _read(chunks: list[bytes]) -> list[ServerSentEvent]:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [event async for event in events_of(body())]


async def test_a_body_in_one_piece() -> None:
    assert await _read([BODY]) == EXPECTED
    assert list(events([BODY])) == EXPECTED


async def test_a_body_byte_by_byte() -> None:
    assert await _read([BODY[i : i + 1] for i in range(len(BODY))]) == EXPECTED


@given(st.lists(st.integers(1, len(BODY) - 1), max_size=12))
async def test_a_body_cut_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(BODY)]
    assert await _read([BODY[a:b] for a, b in itertools.pairwise(edges)]) == EXPECTED
